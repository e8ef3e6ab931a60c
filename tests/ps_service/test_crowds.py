# SPDX-License-Identifier: Apache-2.0
"""Many workers that wait at one server: what they cost its database, and what each of them is told."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from ps_service import bell
from ps_service.looking import look_for_work
from tests.ps_service.silence import LOST_AFTER_S, pass_time, who_is_lost
from tests.ps_service.statements import statements


@pytest.fixture
async def server(start_server):
    """Nothing happens by itself."""
    return await start_server(on_disk=True, performing=False)


async def looked(server):
    """Come back once the room has looked for everybody who asked."""
    await asyncio.sleep(0)
    while server.service.room._looking is not None:
        await asyncio.sleep(0)


@asynccontextmanager
async def waiting(server, workers):
    """The requests of these workers, who all wait and were looked for."""
    async with asyncio.timeout(60):
        asking = [asyncio.create_task(worker.ask(wait_s=60)) for worker in workers]
        while len(server.service.room) < len(workers):
            await asyncio.sleep(0)
        await looked(server)
        try:
            yield asking
        finally:
            server.service.room.send_home()
            await asyncio.gather(*asking)


async def a_crowd(server, count, **enrolment):
    return [await server.enrol(f"worker-{number:03d}", **enrolment) for number in range(count)]


@pytest.mark.parametrize("count", [1, 30])
@pytest.mark.parametrize("open_runs", [0, 3])
async def test_looking_for_many_in_vain_is_one_statement_as_for_one(server, count, open_runs):
    crowd = await a_crowd(server, count)
    for _ in range(open_runs):
        await server.a_run(cohort_size=1000)
    async with waiting(server, crowd):
        with statements(server) as asked:
            server.service.bell.ring([bell.worker_topic(worker.worker_id) for worker in crowd])
            await looked(server)
    assert asked.statements == ["SELECT"]
    assert (asked.reads, asked.writes) == (0, 0)


@pytest.mark.parametrize("count", [1, 30])
async def test_finding_the_work_of_many_is_one_read_as_for_one(server, count):
    crowd = await a_crowd(server, count)
    run = await server.a_run(cohort_size=count)
    for worker in crowd:
        await worker.ask()
    with statements(server) as asked:
        found = await look_for_work(server.runner, 20.0, [worker.worker_id for worker in crowd])
    assert {work.run_id for work in found.values()} == {run.run_id}
    assert len(found) == count
    assert (asked.reads, asked.statements.count("SELECT")) == (1, 8)


@pytest.mark.parametrize("count", [3, 30])
async def test_a_crowd_joins_a_run_in_one_transaction(server, count):
    crowd = await a_crowd(server, count)
    spec = await server.a_spec(cohort_size=count)
    async with waiting(server, crowd) as asking:
        with statements(server) as asked:
            created = await server.operator.post("/v1/runs", json=spec)
            answers = await asyncio.gather(*asking)
    assert asked.writes == 2, "one creates the run, one lets all join it"
    assert asked.reads == 2, "a look before they join, and one after"
    run_id = created.json()["run_id"]
    assert [answer.json()["run_id"] for answer in answers] == [run_id] * count
    assert [answer.json()["slot"] for answer in answers] == list(range(count))
    assert (await server.show(run_id)).members == count


async def test_what_the_room_finds_is_what_asking_for_the_assignment_gives(server):
    crowd = await a_crowd(server, 3)
    async with waiting(server, crowd) as asking:
        await server.a_run(cohort_size=3)
        answers = [(await each).json() for each in asking]
    for worker, answer in zip(crowd, answers, strict=True):
        assert (await worker.http.get(f"/v1/assignments/{answer['assignment_id']}")).json() == answer


async def test_who_waits_while_others_are_invited_goes_on_waiting(server):
    crowd = await a_crowd(server, 10)
    async with waiting(server, crowd) as asking:
        run = await server.a_run(cohort_size=4, min_workers=10)
        await looked(server)
        while sum(each.done() for each in asking) < 4:
            await asyncio.sleep(0)
        await looked(server)
        assert sum(each.done() for each in asking) == 4
        assert len(server.service.room) == 6
    assert (await server.show(run.run_id)).members == 10


async def test_a_waiting_worker_that_is_revoked_is_told_so_and_the_others_wait(server):
    crowd = await a_crowd(server, 3)
    async with waiting(server, crowd) as asking:
        assert (await server.operator.delete(f"/v1/workers/{crowd[1].worker_id}")).status_code == 204
        answer = await asking[1]
        assert (answer.status_code, answer.json()["code"]) == (403, "worker-revoked")
        assert not asking[0].done()
        assert not asking[2].done()


async def test_evaluators_and_trainers_wait_in_one_room_and_each_gets_its_own(server):
    trainers = await a_crowd(server, 2)
    judges = [await server.enrol(f"judge-{number}", role="evaluator") for number in range(2)]
    run = await server.a_run(cohort_size=2)
    assignments = [await asyncio.create_task(worker.ask()) for worker in trainers][1:]
    assert [answer.status_code for answer in assignments] == [200]
    async with waiting(server, judges) as asking:
        for worker in trainers:
            await worker.send(await worker.assignment())
        await server.aggregate_now()
        answers = [(await each).json() for each in asking]
    assert [(answer["kind"], answer["run_id"], answer["version"]) for answer in answers] == [
        ("evaluate", run.run_id, 1)
    ] * 2


async def test_who_hangs_up_is_gone_at_once_and_lost_in_time(server):
    worker, stays = await a_crowd(server, 2)
    request = (
        f"GET /v1/workers/{worker.worker_id}/assignment HTTP/1.1\r\nHost: server\r\n"
        f"Authorization: Bearer {await worker.token()}\r\nPrefer: wait=600\r\n\r\n"
    )
    async with asyncio.timeout(30), server.on_a_socket() as client, waiting(server, [stays]):
        _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(request.encode())
        await writer.drain()
        await server.someone_listens(bell.worker_topic(worker.worker_id))
        writer.close()
        await writer.wait_closed()
        while len(server.service.room) > 1:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        await pass_time(server, LOST_AFTER_S + 30)
        assert await who_is_lost(server) == [worker.worker_id]


async def test_a_crowd_that_waits_holds_no_connection_of_the_database(server):
    async with waiting(server, await a_crowd(server, 30)):
        assert server.stores.records.visits.under_way == 0


# --- for whom there may be something -----------------------------------------------------------


async def members(server, run):
    return (await server.show(run.run_id)).members


async def test_a_worker_that_comes_to_serve_another_task_joins_its_runs(server):
    run = await server.a_run(cohort_size=2)
    worker = await server.enrol("worker", tasks=("other",))
    assert (await worker.ask()).status_code == 204
    assert await members(server, run) == 0
    await worker.http.post(f"/v1/workers/{worker.worker_id}/heartbeat", json={"tasks": ["other", "digits"]})
    assert (await worker.ask()).status_code == 204
    assert await members(server, run) == 1


async def test_who_has_joined_one_run_joins_the_next_also_when_the_first_has_ended(server):
    first = await server.a_run(cohort_size=2)
    worker = await server.enrol("worker")
    await worker.ask()
    assert (await server.operator.post(f"/v1/runs/{first.run_id}/cancel")).status_code == 200
    second = await server.a_run(cohort_size=2)
    third = await server.a_run(cohort_size=2)
    await worker.ask()
    assert [await members(server, run) for run in (first, second, third)] == [1, 1, 1]


async def test_who_serves_two_tasks_joins_the_runs_of_both(server):
    worker = await server.enrol("worker", tasks=("digits", "other"))
    runs = [await server.a_run(cohort_size=2, task=task) for task in ("digits", "other", "third")]
    await worker.ask()
    assert [await members(server, run) for run in runs] == [1, 1, 0]


async def test_a_crowd_that_was_lost_and_comes_back_is_welcomed_in_few_transactions(start_server):
    server = await start_server(on_disk=True, performing=False, lost_after_s=LOST_AFTER_S)
    await server.a_run(cohort_size=2)
    workers = await a_crowd(server, 40)
    for worker in workers:
        await worker.ask()
    await pass_time(server, LOST_AFTER_S)
    assert len(await who_is_lost(server)) == 40
    with statements(server) as asked:
        answers = await asyncio.gather(
            *[worker.http.post(f"/v1/workers/{worker.worker_id}/heartbeat", json={}) for worker in workers]
        )
    assert {answer.status_code for answer in answers} == {204}
    assert asked.writes < 20
    assert await who_is_lost(server) == []


async def test_who_names_other_tasks_while_it_waits_is_answered_and_asks_for_those(server):
    [worker] = await a_crowd(server, 1)
    async with asyncio.timeout(20):
        asking = asyncio.create_task(worker.ask(wait_s=60))
        await server.someone_listens(bell.worker_topic(worker.worker_id))
        await worker.http.post(f"/v1/workers/{worker.worker_id}/heartbeat", json={"tasks": ["other"]})
        assert (await asking).status_code == 204
