# SPDX-License-Identifier: Apache-2.0
"""What counts as a sign of life, how long silence must last, and what writing it down costs."""

import asyncio

import pytest
from sqlalchemy import select

from protocol.messages import Role
from ps_service.background import background
from ps_service.clock import SystemClock
from ps_service.presence import MOST_AT_ONCE
from ps_service.routes.tensors import _send
from ps_service.storage import credential_records, schema
from tests.ps_service.silence import LOST_AFTER_S, heartbeat, lose, pass_time, standings, who_is_lost
from tests.ps_service.statements import statements

HALF_MS = LOST_AFTER_S * 500
"""What is written of a worker may be so old before it is written anew."""


@pytest.fixture
async def server(start_server):
    """Nothing happens by itself: the tests look."""
    return await start_server(on_disk=True, performing=False)


async def stored_worker(server, worker):
    async with server.stores.records.read() as connection:
        return await credential_records.worker_by_id(connection, worker.worker_id)


async def last_seen(server):
    """When each worker was heard of last, as the operator is told."""
    return [row["last_seen_ms"] for row in (await server.operator.get("/v1/workers")).json()["workers"]]


# --- who is heard ------------------------------------------------------------------------------


async def test_a_worker_that_waits_for_work_is_there_for_as_long_as_it_waits(server):
    worker, gone = await server.enrol("waits"), await server.enrol("gone")
    async with asyncio.timeout(20):
        asking = asyncio.create_task(worker.assignment(wait_s=30))
        await server.someone_listens(f"worker/{worker.worker_id}")
        await pass_time(server, 4 * LOST_AFTER_S)
        assert await who_is_lost(server) == [gone.worker_id]
        assert (await stored_worker(server, worker)).last_seen_ms == server.clock.now_ms()
        server.clock.advance(15_000)
        await server.a_run(cohort_size=1)
        await asking
    for seconds, lost in (
        (30, 1),
        (30, 1),
        (20, 1),
        (10, 2),
    ):  # 90 s since its wait ended, not since the look
        server.clock.advance(seconds * 1000)
        await server.service.presence.look()
        assert len(await who_is_lost(server)) == lost


async def test_a_worker_whose_update_travels_is_there_for_as_long_as_it_takes(server):
    run_id, cohort = await server.a_round(2, quorum=2, deadline_s=3600)
    worker, assignment = cohort[0]
    await cohort[1][0].send(cohort[1][1])
    update = server.an_update(assignment)
    url = (await worker.declare(assignment, update.header)).json()["upload_url"]

    async def slow():
        yield update.body[:100]
        await pass_time(server, 4 * LOST_AFTER_S)
        yield update.body[100:]

    async with asyncio.timeout(20):
        answer = await worker.put(url, slow(), Content_Length=str(len(update.body)))
    assert answer.status_code == 200, answer.text
    assert await who_is_lost(server) == [cohort[1][0].worker_id]
    assert (await server.rounds(run_id))[0]["status"] == "aggregating"


async def test_a_worker_that_downloads_is_there_for_as_long_as_it_takes(server):
    run_id, cohort = await server.a_round(2, quorum=1, deadline_s=36_000)
    (worker, assignment), (other, given) = cohort
    await other.send(given)
    digest = assignment["tensors"]["params"]
    answer = _send(server.service, await stored_worker(server, worker), run_id, digest, 0, 99)
    await anext(answer)
    await pass_time(server, 4 * LOST_AFTER_S, [other])
    assert await who_is_lost(server) == []
    assert (await server.rounds(run_id))[0]["status"] == "collecting"
    await answer.aclose()
    await pass_time(server, LOST_AFTER_S + 30, [other])
    assert await who_is_lost(server) == [worker.worker_id]


async def test_a_request_without_a_valid_credential_is_nobody_s_sign_of_life(server):
    worker = await server.enrol("worker")
    for _ in range(3):
        await pass_time(server, LOST_AFTER_S // 3)
        answer = await server.client("wrong").post(f"/v1/workers/{worker.worker_id}/heartbeat", json={})
        assert answer.status_code == 401
    assert await who_is_lost(server) == [worker.worker_id]


async def test_the_list_of_workers_says_when_each_was_heard_of_before_it_is_written_down(server):
    worker = await server.enrol("worker")
    server.clock.advance(7_000)
    await heartbeat(worker)
    assert await last_seen(server) == [server.clock.now_ms()]
    assert (await stored_worker(server, worker)).last_seen_ms == server.clock.now_ms() - 7_000


# --- silence of the server's own ---------------------------------------------------------------


async def test_nobody_is_lost_before_a_new_server_has_listened_long_enough(start_server, server):
    workers = [await server.enrol(name) for name in ("a", "b")]
    server.clock.advance(24 * 3_600_000)
    server = await start_server(on_disk=True, performing=False, clock=server.clock)
    await pass_time(server, LOST_AFTER_S - 30)
    assert await who_is_lost(server) == []
    await pass_time(server, 30)
    assert set(await who_is_lost(server)) == {worker.worker_id for worker in workers}


async def test_nobody_is_lost_for_a_pause_of_the_server_itself(server):
    worker = await server.enrol("worker")
    await pass_time(server, LOST_AFTER_S - 30)
    server.clock.advance(3_600_000)  # the machine slept: there was nobody who could have heard
    await server.service.presence.look()
    await pass_time(server, LOST_AFTER_S - 30)
    assert await who_is_lost(server) == []
    await pass_time(server, 30)
    assert await who_is_lost(server) == [worker.worker_id]


async def test_who_was_lost_before_a_restart_is_lost_after_it_until_it_asks(start_server, server):
    run_id, cohort = await server.a_round(2, deadline_s=3600)
    await lose(server, *(worker for worker, _ in cohort))
    server = await start_server(on_disk=True, performing=False, clock=server.clock)
    assert await standings(server, run_id) == [("lost", None)] * 2
    worker = cohort[0][0]
    await heartbeat(worker.moved_to(server))
    assert await standings(server, run_id) == [("asked", None), ("lost", None)]


# --- what it costs -----------------------------------------------------------------------------


async def test_signs_of_life_are_written_down_together_and_a_heartbeat_writes_nothing(server):
    workers = [await server.enrol(f"worker-{number}") for number in range(20)]
    for worker in workers:
        await worker.be_ready()
    server.clock.advance(HALF_MS)
    with statements(server) as asked:
        for worker in workers:
            await heartbeat(worker)
        assert asked.writes == 0
        server.clock.advance(1_000)
        await server.service.presence.look()
        assert asked.writes == 1
        await server.service.presence.look()
        assert asked.writes == 1
    seen_ms = server.clock.now_ms() - 1_000
    assert [(await stored_worker(server, worker)).last_seen_ms for worker in workers] == [seen_ms] * 20


async def test_a_worker_that_waits_is_written_down_twice_while_it_could_be_lost_once(server):
    """5,000 that wait are so many rows in 45 s, and a look in between writes nothing."""
    worker = await server.enrol("waits")
    async with asyncio.timeout(20):
        asking = asyncio.create_task(worker.ask(wait_s=30))
        await server.someone_listens(f"worker/{worker.worker_id}")
        written = 0
        for _ in range(4 * LOST_AFTER_S // 5):
            server.clock.advance(5_000)
            with statements(server) as asked:
                await server.service.presence.look()
            written += asked.writes
            age_ms = server.clock.now_ms() - (await stored_worker(server, worker)).last_seen_ms
            assert age_ms < HALF_MS
        server.service.stop_waiting()
        await asking
    assert written == 8  # in 360 s
    assert await who_is_lost(server) == []


async def test_silence_counts_from_the_last_sign_also_where_it_was_not_written_down_at_once(server):
    worker = await server.enrol("worker")
    for _ in range(8):
        server.clock.advance(5_000)
        await server.service.presence.look()
    await heartbeat(worker)  # 40 s after it was written of last
    for _ in range(17):
        server.clock.advance(5_000)
        await server.service.presence.look()
        assert await who_is_lost(server) == []
    server.clock.advance(5_000)
    await server.service.presence.look()
    assert await who_is_lost(server) == [worker.worker_id]


async def test_what_a_crash_takes_of_the_signs_of_life_loses_nobody(start_server, server):
    """It was heard of 40 s after it was written down, and the server dies before it writes that."""
    worker = await server.enrol("worker")
    server.clock.advance(40_000)
    await heartbeat(worker)
    await server.service.presence.look()
    server = await start_server(on_disk=True, performing=False, clock=server.clock)
    await pass_time(server, LOST_AFTER_S - 30)
    assert await who_is_lost(server) == []
    await pass_time(server, 30)
    assert await who_is_lost(server) == [worker.worker_id]


async def test_signs_that_could_not_be_written_are_written_with_the_next(server):
    worker, other = await server.enrol("worker"), await server.enrol("other")
    server.clock.advance(HALF_MS)
    await heartbeat(worker)
    async with server.stores.records.write():
        looking = asyncio.create_task(server.service.presence.look())
        while not server.stores.records._writing._waiters:
            await asyncio.sleep(0)
        looking.cancel()
        await asyncio.wait([looking])
    heard_ms = server.clock.now_ms()
    server.clock.advance(1_000)
    await heartbeat(other)
    await server.service.presence.look()
    assert (await stored_worker(server, worker)).last_seen_ms == heard_ms
    assert (await stored_worker(server, other)).last_seen_ms == heard_ms + 1_000


async def test_of_very_many_who_fall_silent_at_once_all_are_found_without_a_pause(server):
    count = 2 * MOST_AT_ONCE + 1
    enrolled_ms = server.clock.now_ms()
    async with server.stores.records.write() as connection:
        for number in range(count):
            name = f"worker-{number}"
            stored = credential_records.StoredWorker(
                name, name, Role.TRAINER, ("digits",), enrolled_ms, enrolled_ms, None, None
            )
            await credential_records.add_worker(connection, stored)
    await pass_time(server, LOST_AFTER_S - 30)
    server.clock.advance(30_000)
    waits = [await server.service.presence.look() for _ in range(3)]
    assert waits == [0.0, 0.0, server.service.presence.look_every_s]
    async with server.stores.records.read() as connection:
        lost = (await connection.execute(select(schema.workers.c.lost_ms))).scalars().all()
    assert lost == [server.clock.now_ms()] * count


# --- in the same moment ------------------------------------------------------------------------


async def test_a_worker_found_lost_while_its_request_is_looked_up_is_not_left_lost(server):
    run_id, [(worker, _), _] = await server.a_round(2, deadline_s=3600)
    looked_up = await stored_worker(server, worker)
    await lose(server, worker)
    await server.service.presence.seen(looked_up)  # as it was before
    assert (await standings(server, run_id))[0] == ("asked", None)
    assert worker.worker_id not in await who_is_lost(server)


async def test_a_lost_worker_revoked_while_its_request_is_looked_up_is_not_welcomed_back(server):
    run_id, [(worker, _), _] = await server.a_round(2, deadline_s=3600)
    await lose(server, worker)
    looked_up = await stored_worker(server, worker)
    await server.operator.delete(f"/v1/workers/{worker.worker_id}")
    await server.service.presence.seen(looked_up)
    assert worker.worker_id in await who_is_lost(server)
    assert (await standings(server, run_id))[0] == ("declined", "the worker was revoked")


async def test_a_worker_that_asks_while_the_lost_are_written_down_is_not_left_lost(server):
    run_id, [(worker, _), (other, _)] = await server.a_round(2, deadline_s=3600)
    await pass_time(server, LOST_AFTER_S - 30)
    server.clock.advance(30_000)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        async with server.stores.records.write():
            group.create_task(server.service.presence.look())
            while not server.stores.records._writing._waiters:
                await asyncio.sleep(0)
            asking = group.create_task(heartbeat(worker))
            while server.clock.now_ms() not in await last_seen(server):
                await asyncio.sleep(0)
        assert (await asking).status_code == 204
    assert await standings(server, run_id) == [("asked", None), ("lost", None)]
    assert await who_is_lost(server) == [other.worker_id]


async def test_whenever_a_worker_asks_it_is_not_left_lost(server):
    """The request begins a little later against the look each time, from before it to after it."""
    run_id, [(worker, _), _] = await server.a_round(2, deadline_s=36_000)
    presence = server.service.presence
    for turns in range(0, 120, 4):
        await pass_time(server, LOST_AFTER_S - 30)
        server.clock.advance(30_000)
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            group.create_task(presence.look())
            for _ in range(turns):
                await asyncio.sleep(0)
            await heartbeat(worker)
        assert (await stored_worker(server, worker)).lost_ms is None, turns
        assert (await standings(server, run_id))[0] == ("asked", None), turns
    assert (await server.rounds(run_id))[0]["lost"] == 1


async def test_a_server_left_to_itself_finds_the_lost_and_closes_their_round(start_server):
    """By the machine's own clock, in a second or two."""
    server = await start_server(on_disk=True, performing=False, lost_after_s=1, clock=SystemClock())
    run_id, [(worker, assignment), _] = await server.a_round(2, quorum=1, deadline_s=3600)
    await worker.send(assignment)
    async with background(server.service), asyncio.timeout(30):
        while (await server.show(run_id)).version == 0:
            await heartbeat(worker)
    assert (await server.rounds(run_id))[0]["lost"] == 1


async def test_an_assignment_asks_for_heartbeats_well_within_the_silence_that_loses_a_worker(start_server):
    for lost_after_s, heartbeat_s in ((90, 20.0), (45, 10.0), (3600, 800.0)):
        server = await start_server(performing=False, lost_after_s=lost_after_s)
        _, [(_, assignment), _] = await server.a_round()
        assert assignment["heartbeat_s"] == heartbeat_s
