# SPDX-License-Identifier: Apache-2.0
"""Who trains in an asynchronous run, and when: places, turns, and those who hang, decline or are lost."""

from ps_service.deadlines import tick
from tests.ps_service.asynchronous_runs import a_cohort
from tests.ps_service.small_federation import code_of


async def test_no_more_workers_train_than_the_concurrency_and_turns_go_round(start_server):
    server = await start_server(performing=False)
    _, cohort = await a_cohort(server, 5, cohort_size=20, concurrency=2)
    turns = [0] * 5
    for _ in range(10):
        at_work = [i for i, worker in enumerate(cohort) if (await worker.ask()).status_code == 200]
        assert len(at_work) == 2
        server.clock.advance(1)
        first = min(at_work, key=turns.__getitem__)
        assignment = await cohort[first].assignment()
        await cohort[first].send(assignment, server.an_update(assignment, seed=sum(turns)))
        turns[first] += 1
    assert turns == [2] * 5


async def test_a_lost_worker_gives_up_its_place_and_may_still_answer(start_server):
    server = await start_server(performing=False, lost_after_s=9)
    run_id, [first, second] = await a_cohort(server, 2, cohort_size=2, concurrency=1)
    held = await first.assignment()
    for _ in range(4):
        server.clock.advance(3_000)
        await second.http.post(f"/v1/workers/{second.worker_id}/heartbeat", json={})
        await server.service.presence.look()
    assert (await second.ask()).status_code == 200
    await second.send(await second.assignment())
    await first.send(held)
    assert (await server.rounds(run_id))[0]["admitted"] == 2


async def test_who_declines_is_not_asked_again_in_the_same_round(start_server):
    server = await start_server(performing=False)
    _, [first, second] = await a_cohort(server, 2, cohort_size=2, concurrency=1)
    declined = await first.assignment()
    await first.http.post(f"/v1/assignments/{declined['assignment_id']}/decline", json={"reason": "busy"})
    for turn in range(2):
        assert (await first.ask()).status_code == 204
        server.clock.advance(1)
        assignment = await second.assignment()
        await second.send(assignment, server.an_update(assignment, seed=turn))
    await server.aggregate_now()
    assert (await first.assignment())["version"] == 1


async def test_newcomers_queue_behind_those_who_wait(start_server):
    server = await start_server(performing=False)
    _, cohort = await a_cohort(server, 3, cohort_size=50, concurrency=1)
    given = []
    for turn in range(9):
        if turn == 4:
            cohort.append(await server.enrol("newcomer"))
        at_work = [i for i, worker in enumerate(cohort) if (await worker.ask()).status_code == 200]
        [number] = at_work
        given.append(number)
        server.clock.advance(1)
        assignment = await cohort[number].assignment()
        await cohort[number].send(assignment, server.an_update(assignment, seed=turn))
    assert given == [0, 1, 2, 0, 1, 2, 0, 3, 1]


async def test_who_hangs_holds_up_no_further_round(start_server):
    """A worker that is heard of and never answers: after a round in which nothing came another is asked."""
    server = await start_server(performing=False)
    run_id, [hung, other] = await a_cohort(server, 2, cohort_size=1, concurrency=1)
    held = await hung.assignment()
    server.clock.advance(60_000)
    await tick(server.runner)
    assert (await server.rounds(run_id))[0]["status"] == "abandoned"
    await other.send(await other.assignment())
    await server.aggregate_now()
    assert (await server.show(run_id)).version == 1
    assert (await hung.send(held)).outcome == "pending", "it may still answer"


async def test_an_outage_gives_nobody_a_turn_who_is_not_there(start_server):
    """All fall silent at once, in two batches: when they are back, those who trained go on, and no others."""
    server = await start_server(performing=False, lost_after_s=9)
    _, cohort = await a_cohort(server, 99, cohort_size=50, concurrency=2)
    for _ in range(4):
        server.clock.advance(3_000)
        await server.service.presence.look()
    await server.service.presence.look()
    for worker in cohort:
        await worker.http.post(f"/v1/workers/{worker.worker_id}/heartbeat", json={})
    at_work = [worker for worker in cohort if (await worker.ask()).status_code == 200]
    assert at_work == cohort[:2]


async def test_who_trains_for_too_long_begins_anew_from_the_newest_version(start_server):
    """Its turn is over before it is done; the next one begins when it asks, not when the server knew."""
    server = await start_server(performing=False)
    _, [fast, slow] = await a_cohort(server, 2, cohort_size=1, max_staleness=1)
    late = await slow.assignment()
    for _ in range(5):
        await fast.send(await fast.assignment())
        await server.aggregate_now()
    assert code_of(await slow.declare(late, server.an_update(late).header)) == "too-stale"
    again = await slow.assignment()
    assert (again["version"], again["assignment_id"] != late["assignment_id"]) == (5, True)


async def test_a_revoked_worker_s_place_is_given_to_another(start_server):
    server = await start_server(performing=False)
    _, [first, second] = await a_cohort(server, 2, cohort_size=2, concurrency=1)
    await first.assignment()
    await server.operator.delete(f"/v1/workers/{first.worker_id}")
    assert (await second.ask()).status_code == 200


async def test_a_paused_run_asks_nobody_and_goes_on_where_it_was(start_server):
    server = await start_server(performing=False)
    run_id, [first, second] = await a_cohort(server, 2, cohort_size=2)
    held = [await first.assignment(), await second.assignment()]
    await server.operator.post(f"/v1/runs/{run_id}/pause")
    await first.send(held[0])
    assert (await first.ask()).status_code == 204
    await server.operator.post(f"/v1/runs/{run_id}/resume")
    assert (await first.assignment())["version"] == 0
    await second.send(held[1])
    await server.aggregate_now()
    assert (await server.show(run_id)).version == 1


async def test_a_version_needs_updates_of_as_many_workers_as_the_quorum_says(start_server):
    """One alone gives what would fill a version and is asked no more; with one more it is made."""
    server = await start_server(performing=False)
    run_id, [eager, other] = await a_cohort(server, 2, cohort_size=3, quorum=2)
    for turn in range(3):
        assignment = await eager.assignment()
        await eager.send(assignment, server.an_update(assignment, seed=turn))
    assert (await eager.ask()).status_code == 204
    assert (await server.rounds(run_id))[0]["status"] == "collecting"
    await other.send(await other.assignment())
    await server.aggregate_now()
    assert (await server.show(run_id)).version == 1
    assert (await eager.assignment())["version"] == 1


async def test_what_would_come_too_late_is_settled_while_the_version_is_made(start_server):
    server = await start_server(performing=False)
    _, [fast, slow] = await a_cohort(server, 2, cohort_size=1, max_staleness=0)
    late = await slow.assignment()
    await fast.send(await fast.assignment())
    assert code_of(await slow.declare(late, server.an_update(late).header)) == "too-stale"
    assert (await slow.ask()).status_code == 204, "it is not asked the same again"
    await server.aggregate_now()
    assert (await slow.assignment())["version"] == 1
