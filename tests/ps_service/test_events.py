# SPDX-License-Identifier: Apache-2.0
"""A run's events, over a real socket: the in-process transport gathers an answer before giving it."""

import asyncio
import json

import pytest


@pytest.fixture
async def server(start_server):
    """On disk: a stream that is broken off takes its connection with it, and so a database in memory."""
    return await start_server(on_disk=True)


async def events(client, run_id, count, **headers):
    """The first `count` events: (id, kind, data)."""
    found, fields = [], {}
    async with client.stream("GET", f"/v1/runs/{run_id}/events", headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            if line.startswith(":"):
                continue
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
                continue
            found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
            if len(found) == count:
                break
    return found


async def test_events_come_as_they_happen_and_resume_after_the_last_one_seen(server):
    run_id, cohort = await server.a_round(rounds=1)
    async with asyncio.timeout(30), server.on_a_socket() as client:
        first = await events(client, run_id, 3)
        assert [(kind, data["status"]) for _, kind, data in first] == [
            ("run", "waiting"),
            ("round", "collecting"),
            ("run", "running"),
        ]
        following = asyncio.create_task(events(client, run_id, 2, **{"Last-Event-ID": str(first[-1][0])}))
        for worker, assignment in cohort:
            await worker.send(assignment)
        second = await following
        assert [(kind, data["status"]) for _, kind, data in second] == [
            ("round", "committed"),
            ("run", "finished"),
        ]
        assert second[0][0] > first[-1][0]
        assert await events(client, run_id, 1, **{"Last-Event-ID": "9" * 400}) == first[:1]  # no such id


async def test_who_has_seen_what_a_restored_server_knows_nothing_of_is_told_from_the_beginning(server):
    run_id, _ = await server.a_round(rounds=1)
    async with asyncio.timeout(30), server.on_a_socket() as client:
        told = await events(client, run_id, 3)
        last, beyond = told[-1][0], str(told[-1][0] + 1)
        assert await events(client, run_id, 3, **{"Last-Event-ID": beyond}) == told
        assert await events(client, run_id, 1, **{"Last-Event-ID": str(last - 1)}) == told[-1:]


async def test_metrics_are_announced(server):
    run_id, cohort = await server.a_round(rounds=1)
    for worker, assignment in cohort:
        await worker.send(assignment)
    await server.aggregate_now()
    judge = await server.enrol("judge", role="evaluator")
    report = {"version": 1, "num_examples": 10, "metrics": {"accuracy": 0.5}}
    await judge.http.post(f"/v1/runs/{run_id}/metrics", json=report)
    async with asyncio.timeout(30), server.on_a_socket() as client:
        announced = await events(client, run_id, 6)
    assert announced[-1][1:] == ("metrics", {"version": 1, "metrics": {"accuracy": 0.5}})


async def test_a_stopping_server_ends_the_stream(server):
    run = await server.a_run()
    async with asyncio.timeout(30), server.on_a_socket() as client:
        asking = asyncio.create_task(events(client, run.run_id, 99))
        await server.someone_listens(f"run/{run.run_id}")
        server.service.stop_waiting()
        assert [kind for _, kind, _ in await asking] == ["run"]


async def test_a_key_that_is_revoked_follows_no_further(server):
    run_id, _cohort = await server.a_round(rounds=1)
    issued = (await server.operator.post("/v1/keys", json={"label": "ci", "scopes": ["runs:read"]})).json()
    async with asyncio.timeout(30), server.on_a_socket() as client:
        client.headers["Authorization"] = f"Bearer {issued['operator_key']}"
        following = asyncio.create_task(events(client, run_id, 99))
        await server.someone_listens(f"run/{run_id}")
        await server.operator.delete(f"/v1/keys/{issued['key_id']}")
        await server.operator.post(f"/v1/runs/{run_id}/cancel")
        assert [data["status"] for _, _, data in await following] == ["waiting", "collecting", "running"]


async def test_a_whole_round_over_a_socket(server):
    """The same routes behind a real server: long-poll, upload, tensors."""
    run_id, cohort = await server.a_round(rounds=1)
    worker, assignment = cohort[0]
    update = server.an_update(assignment)
    async with asyncio.timeout(30), server.on_a_socket() as client:
        worker.http = client
        client.headers["authorization"] = f"Bearer {await worker.token()}"
        digest = assignment["tensors"]["params"]
        answer = await client.get(f"/v1/runs/{run_id}/tensors/{digest}", headers={"Range": "bytes=1-3"})
        assert (answer.status_code, len(answer.content)) == (206, 3)
        url = (await worker.declare(assignment, update.header)).json()["upload_url"]
        refused = await worker.put(url, update.body[:-4] + b"\x00\x00\xc0\x7f")
        assert (refused.status_code, refused.json()["code"]) == (422, "not-finite")
        assert (await worker.put(url, update.body)).status_code == 200
