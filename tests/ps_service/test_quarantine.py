# SPDX-License-Identifier: Apache-2.0
"""A worker whose updates are refused time and again is asked for nothing, until an operator releases it."""

import numpy as np
import pytest

from tests.ps_service.conftest import MODEL, values_like
from tests.ps_service.silence import heartbeat, pass_time


@pytest.fixture
async def server(start_server):
    return await start_server(performing=False, quarantine_after=2)


def poison(server, assignment):
    far = values_like(MODEL, 1.0)
    return server.an_update(assignment, bundles={"delta": far})


async def send(worker, assignment, update):
    offer = await worker.declare(assignment, update.header)
    return offer if offer.status_code != 201 else await worker.put(offer.json()["upload_url"], update.body)


async def row_of(server, worker):
    workers = (await server.operator.get("/v1/workers")).json()["workers"]
    return next(each for each in workers if each["worker_id"] == worker.worker_id)


async def next_round(server, honest, assignment):
    """The honest worker's update makes the next version; give both workers' new assignments."""
    await honest.send(assignment)
    await server.aggregate_now()


async def test_refused_updates_in_a_row_put_their_worker_into_quarantine_and_release_ends_it(server):
    run_id, [(liar, first), (honest, other)] = await server.a_round(quorum=1, rounds=5)
    assert (await send(liar, first, poison(server, first))).json()["code"] == "outside-bound"
    assert (await row_of(server, liar))["refusals"] == 1
    await liar.http.post(f"/v1/assignments/{first['assignment_id']}/decline", json={"reason": "refused"})
    await next_round(server, honest, other)
    second, other = await liar.assignment(), await honest.assignment()
    assert (await send(liar, second, poison(server, second))).json()["code"] == "outside-bound"
    row = await row_of(server, liar)
    assert (row["refusals"], row["quarantined_ms"]) == (2, server.clock.now_ms())
    refused = await send(liar, second, server.an_update(second))
    assert (refused.status_code, refused.json()["code"]) == (403, "worker-quarantined")
    await next_round(server, honest, other)
    assert (await liar.ask()).status_code == 204, "it is asked for nothing"
    rounds = await server.rounds(run_id)
    assert [each["status"] for each in rounds[:2]] == ["committed", "committed"], "nobody waits for it"
    release = f"/v1/workers/{liar.worker_id}/release"
    for _ in range(2):
        assert (await server.operator.post(release)).status_code == 204
    row = await row_of(server, liar)
    assert (row["refusals"], row["quarantined_ms"]) == (0, None)
    await next_round(server, honest, await honest.assignment())
    assert (await liar.send(await liar.assignment())).outcome == "pending"


async def test_an_admitted_update_ends_the_row(server):
    _, [(worker, first), (honest, other)] = await server.a_round(quorum=1, rounds=5)
    await send(worker, first, poison(server, first))
    await worker.send(first)
    assert (await row_of(server, worker))["refusals"] == 0
    await next_round(server, honest, other)
    second = await worker.assignment()
    await send(worker, second, poison(server, second))
    assert (await row_of(server, worker))["quarantined_ms"] is None


async def test_one_assignment_counts_once_and_damage_on_the_way_does_not(server):
    _, [(worker, assignment), _] = await server.a_round()
    update = server.an_update(assignment)
    damaged = type(update)(update.header, update.body[:-1] + bytes([update.body[-1] ^ 1]))
    assert (await send(worker, assignment, damaged)).json()["code"] == "digest-mismatch"
    assert (await row_of(server, worker))["refusals"] == 0
    nan = server.an_update(assignment, bundles={"delta": {n: np.full(s, np.nan) for n, s in MODEL.items()}})
    for bad in (poison(server, assignment), nan, damaged, poison(server, assignment)):
        await send(worker, assignment, bad)
        assert (await row_of(server, worker))["refusals"] == 1


async def test_what_does_not_count_hides_nothing_that_does(server):
    """A worker that declares badly first, on purpose, is found out all the same."""
    _, [(liar, first), (honest, other)] = await server.a_round(quorum=1, rounds=5)
    for assignment in (first, None):
        if assignment is None:
            await liar.http.post(f"/v1/assignments/{first['assignment_id']}/decline", json={"reason": "x"})
            await next_round(server, honest, other)
            assignment = await liar.assignment()
        bad = poison(server, assignment)
        refused = await liar.declare(assignment, bad.declared(size_bytes=1))
        assert refused.json()["code"] == "size-mismatch"
        assert (await send(liar, assignment, bad)).json()["code"] == "outside-bound"
    assert (await row_of(server, liar))["quarantined_ms"] is not None


async def test_who_is_revoked_in_the_middle_of_an_upload_is_cut_off(start_server):
    server = await start_server(performing=False)
    _, [(worker, assignment), _] = await server.a_round()
    update = server.an_update(assignment)
    url = (await worker.declare(assignment, update.header)).json()["upload_url"]
    headers = {
        "Content-Type": "application/vnd.fed-sophia.v1+msgpack",
        "Content-Length": str(len(update.body)),
    }

    async def body():
        yield update.body[:100]
        answer = await server.operator.delete(f"/v1/workers/{worker.worker_id}")
        assert answer.status_code == 204
        yield update.body[100:]

    answer = await worker.http.put(url, content=body(), headers=headers)
    assert answer.status_code in (403, 408), answer.text
    assert (await worker.put(url, update.body)).json()["code"] == "worker-revoked"
    receipt = await server.operator.get(f"/v1/assignments/{assignment['assignment_id']}/update")
    assert receipt.status_code == 404


async def test_a_worker_in_quarantine_is_heard_of_like_any_other_and_still_asked_for_nothing(start_server):
    server = await start_server(performing=False, quarantine_after=1)
    _, [(liar, assignment), (honest, other)] = await server.a_round(quorum=1, rounds=5)
    await send(liar, assignment, poison(server, assignment))
    await pass_time(server, 120, heard=[honest])
    assert (await row_of(server, liar))["lost_ms"] is not None
    assert (await heartbeat(liar)).status_code == 204
    row = await row_of(server, liar)
    assert (row["lost_ms"], row["quarantined_ms"] is None) == (None, False)
    await next_round(server, honest, other)
    assert (await liar.ask()).status_code == 204
