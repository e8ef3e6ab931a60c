# SPDX-License-Identifier: Apache-2.0
"""What a round and a run make of workers that fall silent, and of those that come back."""

import pytest

from ps_service.deadlines import tick
from tests.ps_service.silence import LOST_AFTER_S, heartbeat, lose, pass_time, standings, who_is_lost


@pytest.fixture
async def server(start_server):
    """Nothing happens by itself: the tests look, and perform what was asked for."""
    return await start_server(performing=False)


async def a_long_round(server, workers=3, **spec):
    """A round whose deadline is far away; its run's id, its workers, and their assignments."""
    run_id, cohort = await server.a_round(workers, **{"quorum": 2, "deadline_s": 3600, "rounds": 5} | spec)
    return run_id, [worker for worker, _ in cohort], [assignment for _, assignment in cohort]


async def first_round(server, run_id):
    return (await server.rounds(run_id))[0]


# --- lost --------------------------------------------------------------------------------------


async def test_a_round_does_not_wait_for_a_worker_that_is_lost(server):
    run_id, workers, assignments = await a_long_round(server)
    for worker, assignment in zip(workers[:2], assignments, strict=False):
        await worker.send(assignment)
    await pass_time(server, LOST_AFTER_S - 30, workers[:2])
    assert (await first_round(server, run_id))["status"] == "collecting"

    await lose(server, workers[2], heard=workers[:2])

    await server.aggregate_now()
    round_ = await first_round(server, run_id)
    assert (round_["status"], round_["admitted"], round_["lost"]) == ("committed", 2, 1)
    assert round_["ended_ms"] == round_["opened_ms"] + (LOST_AFTER_S + 60) * 1000


async def test_a_worker_that_is_heard_of_is_waited_for_however_slow_it_is(server):
    run_id, workers, assignments = await a_long_round(server)
    for worker, assignment in zip(workers[:2], assignments, strict=False):
        await worker.send(assignment)
    await pass_time(server, 10 * LOST_AFTER_S, workers)
    assert await who_is_lost(server) == []
    assert (await first_round(server, run_id))["status"] == "collecting"


@pytest.mark.parametrize("sent", [0, 1])
async def test_lost_workers_never_abandon_a_round_its_deadline_does(server, sent):
    run_id, workers, assignments = await a_long_round(server, deadline_s=600)
    for worker, assignment in zip(workers[:sent], assignments, strict=False):
        await worker.send(assignment)
    await lose(server, *workers[sent:], heard=workers[:sent])
    await pass_time(server, 480, workers[:sent])
    round_ = await first_round(server, run_id)
    assert (round_["status"], round_["lost"]) == ("collecting", 3 - sent)

    await pass_time(server, 30, workers[:sent])
    await tick(server.runner)
    round_ = await first_round(server, run_id)
    assert (round_["status"], round_["lost"]) == ("abandoned", 3 - sent)
    assert round_["reason"] == f"the deadline passed with {sent} updates; the quorum is 2 of 3"


async def test_a_decline_and_a_loss_together_leave_nobody_to_wait_for(server):
    run_id, workers, assignments = await a_long_round(server, workers=4)
    for worker, assignment in zip(workers[:2], assignments, strict=False):
        await worker.send(assignment)
    await lose(server, workers[3], heard=workers[:3])
    assert (await first_round(server, run_id))["status"] == "collecting"
    url = f"/v1/assignments/{assignments[2]['assignment_id']}/decline"
    assert (await workers[2].http.post(url, json={"reason": "battery"})).status_code == 204
    round_ = await first_round(server, run_id)
    assert (round_["status"], round_["declined"], round_["lost"]) == ("aggregating", 1, 1)


async def test_a_worker_that_has_answered_is_not_missed_by_its_round(server):
    run_id, workers, assignments = await a_long_round(server)
    await workers[0].send(assignments[0])
    await lose(server, workers[0], heard=workers[1:])
    round_ = await first_round(server, run_id)
    assert (round_["status"], round_["admitted"], round_["lost"]) == ("collecting", 1, 0)


async def test_a_lost_worker_is_lost_to_every_run_it_has_a_part_in(server):
    one, workers, assignments = await a_long_round(server, workers=2, quorum=1)
    other = (await server.a_run(cohort_size=2, quorum=1, deadline_s=7200)).run_id
    for worker in workers:
        await worker.ask()
    await workers[0].send(assignments[0])
    await workers[0].send(await workers[0].assignment())
    await lose(server, workers[1], heard=workers[:1])
    for run_id in (one, other):
        round_ = await first_round(server, run_id)
        assert (round_["status"], round_["lost"]) == ("aggregating", 1)


async def test_a_lost_worker_is_not_invited(server):
    run_id, workers, assignments = await a_long_round(server)
    for worker, assignment in zip(workers[:2], assignments, strict=False):
        await worker.send(assignment)
    await lose(server, workers[2], heard=workers[:2])
    await server.aggregate_now()
    assert await standings(server, run_id, 2) == [("asked", None), ("asked", None)]
    assert (await server.show(run_id)).members == 2


# --- back --------------------------------------------------------------------------------------


async def test_a_lost_worker_that_returns_in_time_is_waited_for_again_and_counts(server):
    run_id, workers, assignments = await a_long_round(server)
    await workers[0].send(assignments[0])
    await lose(server, *workers[1:], heard=workers[:1])
    for worker in workers[1:]:
        assert (await worker.assignment())["round"] == 1
    assert await who_is_lost(server) == []
    assert (await first_round(server, run_id))["lost"] == 0

    await workers[1].send(assignments[1])
    assert (await first_round(server, run_id))["status"] == "collecting"
    await workers[2].send(assignments[2])
    await server.aggregate_now()
    assert await standings(server, run_id) == [("counted", None)] * 3
    assert (await first_round(server, run_id))["lost"] == 0


async def test_any_request_brings_a_lost_worker_back(server):
    _, workers, assignments = await a_long_round(server)
    await lose(server, *workers)
    assert (await heartbeat(workers[0])).status_code == 204
    assert (await workers[1].declare(assignments[1], {"no": "header"})).status_code == 422
    assert (await workers[2].http.get("/v1/runs/no-such-run")).status_code == 404
    assert await who_is_lost(server) == []


async def test_a_worker_may_be_lost_and_come_back_many_times(server):
    run_id, workers, _ = await a_long_round(server)
    for _ in range(3):
        await lose(server, *workers[1:], heard=workers[:1])
        assert (await first_round(server, run_id))["lost"] == 2
        await heartbeat(workers[1])
        assert (await first_round(server, run_id))["lost"] == 1


async def test_one_that_returns_after_the_round_hears_so_and_is_invited_to_the_next(server):
    run_id, workers, assignments = await a_long_round(server)
    for worker, assignment in zip(workers[:2], assignments, strict=False):
        await worker.send(assignment)
    await lose(server, workers[2], heard=workers[:2])
    await server.aggregate_now()

    late = await workers[2].declare(assignments[2], server.an_update(assignments[2]).header)
    assert (late.status_code, late.json()["code"]) == (409, "round-closed")
    assert await who_is_lost(server) == []
    assert (await standings(server, run_id))[2] == ("lost", None)
    assert (await workers[2].ask()).status_code == 204  # round 2 began without it

    for worker in workers[:2]:
        await worker.send(await worker.assignment())
    await server.aggregate_now()
    assert (await workers[2].assignment())["round"] == 3


async def test_a_run_whose_workers_are_lost_waits_and_goes_on_when_they_return(server):
    run_id, workers, assignments = await a_long_round(server, workers=2, deadline_s=600)
    await lose(server, *workers)
    await pass_time(server, 600)
    await tick(server.runner)
    run = await server.show(run_id)
    assert (run.status, run.members) == ("waiting", 0)
    assert [round_["status"] for round_ in await server.rounds(run_id)] == ["abandoned"]

    await heartbeat(workers[0])
    assert (await server.show(run_id)).status == "waiting"  # one is no quorum of two
    assert (await workers[1].assignment())["round"] == 2
    assert (await workers[0].assignment())["round"] == 2
    assert (await server.show(run_id)).status == "running"
    assert assignments[0]["slot"] == (await workers[0].assignment())["slot"]


async def test_a_run_that_has_not_begun_waits_for_those_who_are_there(server):
    run = await server.a_run(cohort_size=2, quorum=2)
    early, late = await server.enrol("a-early"), await server.enrol("b-late")
    await early.ask()
    await lose(server, early)
    assert (await late.ask()).status_code == 204
    assert (await server.show(run.run_id)).members == 1
    assert (await early.assignment())["round"] == 1
    assert (await late.assignment())["slot"] == 1


async def test_a_lost_worker_that_is_revoked_has_declined_and_does_not_come_back(server):
    run_id, workers, assignments = await a_long_round(server)
    await workers[0].send(assignments[0])
    await lose(server, *workers[1:], heard=workers[:1])
    assert (await server.operator.delete(f"/v1/workers/{workers[2].worker_id}")).status_code == 204

    round_ = await first_round(server, run_id)
    assert (round_["declined"], round_["lost"], round_["status"]) == (1, 1, "collecting")
    assert (await standings(server, run_id))[2] == ("declined", "the worker was revoked")
    assert (await heartbeat(workers[2])).json()["code"] == "worker-revoked"
    await pass_time(server, LOST_AFTER_S, workers[:1])
    assert (await first_round(server, run_id))["lost"] == 1


async def test_a_decline_after_the_round_does_not_take_back_that_the_worker_was_lost(server):
    run_id, workers, assignments = await a_long_round(server)
    for worker, assignment in zip(workers[:2], assignments, strict=False):
        await worker.send(assignment)
    await lose(server, workers[2], heard=workers[:2])
    await server.aggregate_now()
    url = f"/v1/assignments/{assignments[2]['assignment_id']}/decline"
    assert (await workers[2].http.post(url, json={"reason": "too late"})).status_code == 204
    assert (await standings(server, run_id))[2] == ("lost", None)
