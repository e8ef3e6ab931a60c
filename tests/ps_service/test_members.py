# SPDX-License-Identifier: Apache-2.0
"""Who counts as a member of a run, who gets a slot, and what evaluators are offered."""

import asyncio
from dataclasses import replace

from protocol.messages import MetricsReport, RunStatus
from ps_service.joining import join
from ps_service.storage import (
    member_records,
    report_records,
    run_records,
    version_records,
)


async def revoke(server, worker):
    assert (await server.operator.delete(f"/v1/workers/{worker.worker_id}")).status_code == 204


async def test_a_revoked_worker_is_not_here_and_gets_no_slot(server):
    run = await server.a_run(cohort_size=2)
    gone, *others = [await server.enrol(name) for name in ("a", "b", "c")]
    await gone.ask()
    assert (await server.show(run.run_id)).members == 1
    await revoke(server, gone)
    assert (await server.show(run.run_id)).members == 0
    for worker in others:
        await worker.ask()
    assert (await server.show(run.run_id)).members == 2
    assert [(await worker.assignment())["slot"] for worker in others] == [0, 1]


async def test_a_worker_revoked_while_it_asks_joins_nothing(server):
    run = await server.a_run()
    worker = await server.enrol("a")
    await revoke(server, worker)
    await join(server.runner, {run.run_id: [worker.worker_id]})
    async with server.stores.records.read() as connection:
        assert not await member_records.is_member(connection, run.run_id, worker.worker_id)


async def test_a_run_that_ends_while_a_worker_asks_is_not_joined(start_server):
    server = await start_server(on_disk=True, performing=False)
    run = await server.a_run()
    worker = await server.enrol("a")
    async with server.stores.records.write():
        cancelling = asyncio.create_task(server.runner.cancel_run(run.run_id))
        await asyncio.sleep(0)
        joining = asyncio.create_task(join(server.runner, {run.run_id: [worker.worker_id]}))
        while len(server.stores.records._writing._waiters) < 2:
            await asyncio.sleep(0)
    await asyncio.gather(cancelling, joining)
    assert (await server.show(run.run_id)).members == 0


async def with_versions(server, count, status=RunStatus.RUNNING):
    """A run with so many versions that nobody has measured."""
    run = await server.a_run(rounds=1000)
    async with server.stores.records.write() as connection:
        stored = await run_records.load_run(connection, run.run_id)
        for version in range(1, count + 1):
            await version_records.add_version(connection, run.run_id, version, None, run.tensors, 0)
        await run_records.save_run(
            connection, run.run_id, replace(stored.state, version=count, status=status)
        )
    return run.run_id


async def offered(server, judge, count):
    """(run, version) of the next assignments, each measured."""
    found = []
    for _ in range(count):
        asked = await judge.assignment()
        found.append((asked["run_id"], asked["version"]))
        report = MetricsReport(version=asked["version"], num_examples=1, metrics={})
        async with server.stores.records.write() as connection:
            await report_records.add_report(connection, asked["run_id"], judge.worker_id, report, 0)
    return found


async def test_an_evaluator_that_keeps_up_measures_every_version_in_order(server):
    run_id = await with_versions(server, 100)
    judge = await server.enrol("judge", role="evaluator")
    assert await offered(server, judge, 3) == [(run_id, 1), (run_id, 2), (run_id, 3)]


async def test_an_evaluator_that_fell_behind_is_offered_the_newest_hundred_first(server):
    run_id = await with_versions(server, 150)
    judge = await server.enrol("judge", role="evaluator")
    assert (await offered(server, judge, 1)) == [(run_id, 51)]


async def test_runs_that_go_on_are_measured_before_ended_ones(server):
    live = await with_versions(server, 1)
    server.clock.advance(5)
    ended = await with_versions(server, 1, RunStatus.FINISHED)
    judge = await server.enrol("judge", role="evaluator")
    assert await offered(server, judge, 2) == [(live, 1), (ended, 1)]
