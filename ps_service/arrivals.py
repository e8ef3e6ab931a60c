# SPDX-License-Identifier: Apache-2.0
"""What workers do, as transitions: they come and go, send updates, decline.

These functions change rows only, within one write transaction, like those of `transitions`.
"""

from collections.abc import Collection

from protocol.messages import Admitted, RoundStatus, UpdateHeader
from ps_service import round_machine, run_machine
from ps_service.round_machine import RoundEvent
from ps_service.storage import (
    assignment_records,
    credential_records,
    member_records,
    update_records,
)
from ps_service.storage.assignment_records import StoredAssignment
from ps_service.storage.existing import the_round, the_run
from ps_service.storage.run_records import StoredRun
from ps_service.storage.situations import Situation
from ps_service.transitions import Transition, invite_free, round_event, run_event


async def workers_changed(transition: Transition, run: StoredRun) -> None:
    """Give slots to new members and see whether a round can be opened.

    At first nobody has a slot: all are numbered together once those awaited are there.
    """
    connection, run_id = transition.connection, run.run_id
    if not await member_records.has_slots(connection, run_id):
        waiting = await member_records.count_members(connection, run_id)
        if waiting < run.spec.workers_awaited:
            return
    await member_records.give_slots(connection, run_id)
    if run_machine.heeds_workers(run.state):  # to find who may be invited reads every member
        slots = tuple(await member_records.eligible_slots(connection, run_id))
        await run_event(transition, run, run_machine.WorkersChanged(transition.now_ms, slots))
    await invite_free(transition, run_id)


async def update_admitted(
    transition: Transition,
    situation: Situation,
    header: UpdateHeader,
    staleness: int,
    admitted: Admitted = Admitted.ON_ARRIVAL,
) -> None:
    """Record an update, and let its round know.

    In an asynchronous run that is the open round. While that one is being combined, it is the next.

    Args:
        situation: as it is in this transaction.
        staleness: as `staleness_now` tells it.
    """
    connection, now_ms = transition.connection, transition.now_ms
    run, assignment, stored = situation.run, situation.assignment, situation.round
    event = round_machine.UpdateAdmitted(now_ms)
    if run.spec.asynchronous is not None:
        number = run.state.round
        again = await update_records.has_update_of(connection, run.run_id, number, assignment.slot)
        event = round_machine.UpdateAdmitted(now_ms, staleness, again)
        await member_records.set_free(connection, run.run_id, [assignment.worker_id], now_ms)
        stored = await the_round(connection, run.run_id, number)
    number = stored.state.number
    if stored.state.status is not RoundStatus.COLLECTING:
        await update_records.add_update(connection, assignment, number + 1, header, admitted, now_ms)
        return
    await update_records.add_update(connection, assignment, number, header, admitted, now_ms)
    await round_event(transition, run, stored, event, bytes_up=header.size_bytes)
    if run.spec.asynchronous is not None:
        await invite_free(transition, run.run_id)


async def worker_declined(transition: Transition, assignment: StoredAssignment, reason: str) -> None:
    """A worker will send nothing for this assignment; nothing if it is settled already."""
    if assignment.settled:
        return
    await found_again(transition, assignment)
    run = await the_run(transition.connection, assignment.run_id)
    number = assignment.round if run.spec.asynchronous is None else run.state.round
    stored = await the_round(transition.connection, run.run_id, number)
    await assignment_records.decline(transition.connection, assignment.assignment_id, reason)
    await member_records.set_free(
        transition.connection, run.run_id, [assignment.worker_id], transition.now_ms
    )
    await round_event(transition, run, stored, round_machine.WorkerDeclined(transition.now_ms))
    await invite_free(transition, run.run_id)


async def worker_lost(transition: Transition, worker_id: str) -> set[str]:
    """Nothing is heard of a worker any more: it is not invited, and its rounds need not wait for it.

    Returns:
        The runs in which it leaves a place. Others may be invited once all who are silent are known.
    """
    connection, now_ms = transition.connection, transition.now_ms
    await credential_records.set_lost(connection, worker_id, now_ms)
    left = await assignment_records.open_assignments_of(connection, worker_id)
    for assignment in left:
        await assignment_records.set_assignment_lost(connection, assignment.assignment_id, now_ms)
        await _round_event_of(transition, assignment, round_machine.WorkerLost(now_ms))
    return {assignment.run_id for assignment in left}


async def workers_returned(transition: Transition, worker_ids: Collection[str]) -> None:
    """Lost workers are there again: rounds that still collect wait for them, and they may be invited."""
    connection = transition.connection
    workers = await credential_records.workers_by_id(connection, worker_ids)
    returned = [
        each.worker_id for each in workers.values() if each.lost_ms is not None and each.revoked_ms is None
    ]
    runs: set[str] = set()
    for worker_id in returned:
        await credential_records.set_lost(connection, worker_id, None)
        for assignment in await assignment_records.open_assignments_of(connection, worker_id):
            await found_again(transition, assignment)
        runs.update(await member_records.runs_of_worker(connection, worker_id))
    await may_be_invited(transition, runs)


async def may_be_invited(transition: Transition, run_ids: Collection[str]) -> None:
    """Members of these runs are there again for whoever invites."""
    for run_id in sorted(run_ids):
        run = await the_run(transition.connection, run_id)
        if not run.state.status.ended:
            await workers_changed(transition, run)


async def found_again(transition: Transition, assignment: StoredAssignment) -> bool:
    """The worker of this assignment is heard of: a round that went on without it waits for it again.

    Returns:
        Whether that changed anything.
    """
    if assignment.lost_ms is None or assignment.settled:
        return False
    await assignment_records.set_assignment_lost(transition.connection, assignment.assignment_id, None)
    await _round_event_of(transition, assignment, round_machine.WorkerReturned(transition.now_ms))
    return True


async def _round_event_of(transition: Transition, assignment: StoredAssignment, event: RoundEvent) -> None:
    run = await the_run(transition.connection, assignment.run_id)
    stored = await the_round(transition.connection, assignment.run_id, assignment.round)
    await round_event(transition, run, stored, event)
