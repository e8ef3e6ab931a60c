# SPDX-License-Identifier: Apache-2.0
"""Where each worker of a round stands and why, as an operator is told."""

import numpy as np
import pytest

from ps_service.deadlines import tick
from tests.ps_service.silence import lose, standings


@pytest.fixture
async def server(start_server):
    """Nothing happens by itself: the tests look, and perform what was asked for."""
    return await start_server(performing=False)


async def decline(worker, assignment, reason):
    url = f"/v1/assignments/{assignment['assignment_id']}/decline"
    assert (await worker.http.post(url, json={"reason": reason})).status_code == 204


async def workers_of(server, run_id, number=1, query=""):
    answer = await server.operator.get(f"/v1/runs/{run_id}/rounds/{number}/workers{query}")
    assert answer.status_code == 200, answer.text
    return answer.json()["workers"]


# --- each standing -----------------------------------------------------------------------------


async def test_every_worker_of_a_round_is_told_with_its_standing_and_why(server):
    run_id, cohort = await server.a_round(5, quorum=2, deadline_s=600)
    (first, asked), (second, asked_too), (third, declined), (fourth, wrong), (fifth, _) = cohort
    receipt = await first.send(asked)
    await decline(third, declined, "on battery")
    too_far = server.an_update(wrong, bundles={"delta": {"weight": np.ones((2, 3)), "bias": np.ones(3)}})
    url = (await fourth.declare(wrong, too_far.header)).json()["upload_url"]
    assert (await fourth.put(url, too_far.body)).json()["code"] == "outside-bound"
    await lose(server, fifth, heard=(first, second, third, fourth))
    assert await standings(server, run_id) == [
        ("received", None),
        ("asked", None),
        ("declined", "on battery"),
        ("refused", "outside-bound"),
        ("lost", None),
    ]

    await second.send(asked_too)
    await decline(fourth, wrong, "outside-bound: too far")  # nobody is left to wait for
    await server.aggregate_now()
    assert await standings(server, run_id) == [
        ("counted", None),
        ("counted", None),
        ("declined", "on battery"),
        ("refused", "outside-bound"),
        ("lost", None),
    ]
    rows = await workers_of(server, run_id)
    assert [(row["slot"], row["name"]) for row in rows] == [(n, f"worker-{n}") for n in range(5)]
    assert [row["worker_id"] for row in rows] == [worker.worker_id for worker, _ in cohort]
    assert [row["assignment_id"] for row in rows] == [given["assignment_id"] for _, given in cohort]
    assert rows[0]["received_ms"] == receipt.received_ms
    assert rows[2]["received_ms"] is None


async def test_a_straggler_is_late_once_its_round_has_ended(server):
    run_id, cohort = await server.a_round(2, quorum=1, deadline_s=60)
    await cohort[0][0].send(cohort[0][1])
    server.clock.advance(60_000)
    await tick(server.runner)
    await server.aggregate_now()
    assert await standings(server, run_id) == [("counted", None), ("late", None)]


async def test_what_an_abandoned_round_received_is_not_counted_and_says_why(server):
    run_id, cohort = await server.a_round(2, quorum=2)
    await cohort[0][0].send(cohort[0][1])
    await server.operator.post(f"/v1/runs/{run_id}/cancel")
    assert await standings(server, run_id) == [
        ("not-counted", "round 1 was abandoned: the run ended"),
        ("late", None),
    ]


async def test_a_revoked_worker_of_an_open_round_has_declined(server):
    run_id, [(worker, _), _] = await server.a_round(2, quorum=1)
    await server.operator.delete(f"/v1/workers/{worker.worker_id}")
    assert (await standings(server, run_id))[0] == ("declined", "the worker was revoked")


# --- the endpoint ------------------------------------------------------------------------------


async def test_the_workers_of_a_round_come_in_pages_behind_a_slot(server):
    run_id, _ = await server.a_round(5)
    whole = await workers_of(server, run_id)
    assert [row["slot"] for row in whole] == [0, 1, 2, 3, 4]
    assert await workers_of(server, run_id, query="?limit=2") == whole[:2]
    assert await workers_of(server, run_id, query="?limit=2&after=1") == whole[2:4]
    assert await workers_of(server, run_id, query="?limit=2&after=3") == whole[4:]
    assert await workers_of(server, run_id, query="?after=4") == []


async def test_each_round_is_told_by_itself(server):
    run_id, cohort = await server.a_round(2)
    for worker, assignment in cohort:
        await worker.send(assignment)
    await server.aggregate_now()
    assert await standings(server, run_id, 1) == [("counted", None)] * 2
    assert await standings(server, run_id, 2) == [("asked", None)] * 2


@pytest.mark.parametrize("place", ["{run}/rounds/2", "{run}/rounds/0", "no-such-run/rounds/1"])
async def test_a_round_that_is_not_there_is_not_found(server, place):
    run_id, _ = await server.a_round()
    answer = await server.operator.get(f"/v1/runs/{place.format(run=run_id)}/workers")
    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "after=-2", "after=x"])
async def test_a_page_that_cannot_be_is_refused(server, query):
    run_id, _ = await server.a_round()
    answer = await server.operator.get(f"/v1/runs/{run_id}/rounds/1/workers?{query}")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-message")


async def test_only_an_operator_is_told(server):
    run_id, [(worker, _), _] = await server.a_round()
    url = f"/v1/runs/{run_id}/rounds/1/workers"
    assert (await worker.http.get(url)).json()["code"] == "forbidden"
    assert (await worker.http.get(url)).status_code == 403
    assert (await server.client().get(url)).status_code == 401
