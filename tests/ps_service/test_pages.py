# SPDX-License-Identifier: Apache-2.0
"""Listings in pages: together they are the whole, and a page costs the same whatever its length."""

import pytest
from sqlalchemy import insert

from ps_service.storage import schema, version_records
from tests.ps_service.statements import statements


async def in_pages(server, url, rows, key, limit):
    """All rows, asked for page by page."""
    found, after = [], ""
    for _ in range(20):
        page = (await server.operator.get(f"{url}?limit={limit}{after}")).json()[rows]
        assert len(page) <= limit
        found += page
        if len(page) < limit:
            return found
        after = f"&after={page[-1][key]}"
    raise AssertionError("the listing has no end")


async def some_rounds(server, count):
    run_id, cohort = await server.a_round(rounds=count)
    for _ in range(count):
        for worker, _ in cohort:
            await worker.send(await worker.assignment(), None)
        await server.aggregate_now()
    return run_id


@pytest.fixture
async def server(start_server):
    return await start_server(performing=False)


@pytest.mark.parametrize("limit", [1, 2, 3, 1000])
async def test_the_pages_of_a_listing_are_the_whole_listing(server, limit):
    run_id = await some_rounds(server, 3)
    await server.a_run()
    server.clock.advance(5)
    await server.a_run()
    for url, rows, key, length in [
        ("/v1/runs", "runs", "run_id", 3),
        ("/v1/workers", "workers", "worker_id", 2),
        (f"/v1/runs/{run_id}/rounds", "rounds", "round", 3),
        (f"/v1/runs/{run_id}/versions", "versions", "version", 4),
    ]:
        whole = (await server.operator.get(url)).json()[rows]
        assert len(whole) == length
        assert await in_pages(server, url, rows, key, limit) == whole


async def test_a_page_of_no_length_or_behind_nothing_is_refused(server):
    for url in ("/v1/runs", "/v1/workers"):
        for limit in ("0", "1001", "x"):
            assert (await server.operator.get(f"{url}?limit={limit}")).json()["code"] == "invalid-message"
        assert (await server.operator.get(f"{url}?after=nobody")).json()["code"] == "not-found"


async def test_many_rounds_are_listed_with_as_many_queries_as_one(server):
    run_id = await some_rounds(server, 4)
    counts = []
    for limit in (1, 4):
        with statements(server) as asked:
            answer = await server.operator.get(f"/v1/runs/{run_id}/rounds?limit={limit}")
        assert len(answer.json()["rounds"]) == limit
        counts.append(len(asked.sql))
    assert counts[0] == counts[1]


async def test_a_round_s_end_looks_at_no_other_version_s_reports(server):
    """A report that nobody can read stands beside version 99: no round has to do with it."""
    run_id, cohort = await server.a_round()
    async with server.stores.records.write() as connection:
        await version_records.add_version(connection, run_id, 99, None, {}, 0)
        unreadable = {"run_id": run_id, "version": 99, "worker_id": cohort[0][0].worker_id}
        await connection.execute(insert(schema.metrics).values(report="?", received_ms=0, **unreadable))
    for worker, assignment in cohort:
        await worker.send(assignment)
    with statements(server) as asked:
        await server.aggregate_now()
    assert [r["status"] for r in await server.rounds(run_id)] == ["committed", "collecting"]
    of_versions = [each for each in asked.sql if "FROM versions" in each or "FROM state_tensors" in each]
    assert of_versions
    narrow = ("version = ", "digest IN", "collected_ms IS NULL")  # the last: what retention keeps
    assert all(any(condition in each for condition in narrow) for each in of_versions)
