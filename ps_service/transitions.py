# SPDX-License-Identifier: Apache-2.0
"""What happens inside one write transaction: step a machine, save, write down effects and events.

These functions change rows only. Waking, aggregating and counting come after the commit, from what the
`Transition` has gathered.
"""

import json
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.messages import RoundStatus, RunStatus
from ps_service import round_machine, run_machine
from ps_service.bell import DEADLINES, EFFECTS, HOUSEKEEPING, VERSIONS, run_topic, worker_topic
from ps_service.round_machine import Round, RoundEffect, RoundEvent
from ps_service.run_machine import CancelRound, OpenRound, Run, RunEvent
from ps_service.staleness import oldest_fresh_version
from ps_service.storage import (
    assignment_records,
    effect_records,
    member_records,
    report_records,
    run_records,
    update_records,
)
from ps_service.storage.assignment_records import StoredAssignment
from ps_service.storage.existing import the_round, the_run
from ps_service.storage.run_records import StoredRound, StoredRun
from ps_service.summaries import mean_of_reports, round_summaries, run_summary


@dataclass
class Transition:
    """An open write transaction, and what is to be done once it is committed."""

    connection: AsyncConnection
    now_ms: int
    sent_bytes: Counter[str]
    """Tensor bytes sent by run, not yet written down; read here, reduced after the commit."""
    topics: set[str] = field(default_factory=set)
    ended: list[Round] = field(default_factory=list)
    written_down: Counter[str] = field(default_factory=Counter)
    untidy: set[str] = field(default_factory=set)
    """Runs that may have something to forget."""


async def round_event(
    transition: Transition, run: StoredRun, stored: StoredRound, event: RoundEvent, *, bytes_up: int = 0
) -> Round:
    """Step a round, save it, and write down what follows; give the round after the event.

    Args: bytes_up: what came over the wire with the event.
    """
    round_, effects = round_machine.step(stored.state, event)
    await run_records.save_round(transition.connection, run.run_id, round_, bytes_up)
    for effect in effects:
        match effect:
            case RoundEffect.AGGREGATE:
                await _settle(transition, run, round_)
                await effect_records.add_effect(
                    transition.connection, effect.value, run.run_id, round_.number
                )
                transition.topics.add(EFFECTS)
            case RoundEffect.RESCHEDULE:
                transition.topics.add(DEADLINES)
                await _announce_round(transition, run.run_id, round_.number)
            case RoundEffect.END:
                await _round_ended(transition, run, round_)
    return round_


async def _round_ended(transition: Transition, run: StoredRun, round_: Round) -> None:
    connection, run_id = transition.connection, run.run_id
    committed = round_.status is RoundStatus.COMMITTED
    version = round_.base_version + 1 if committed else None
    if not round_.buffered:
        await assignment_records.settle_round(connection, run_id, round_.number)
    elif round_.out_of_time:  # whoever was asked before it, or in it, holds up no further round
        await assignment_records.set_all_lost(connection, run_id, transition.now_ms)
    await update_records.conclude_updates(
        connection,
        run_id,
        round_.number,
        version=version,
        reason=None if committed else f"round {round_.number} was abandoned: {round_.reason}",
    )
    await write_down_sent_bytes(transition, run_id, round_.number)
    transition.ended.append(round_)
    transition.untidy.add(run_id)
    transition.topics.add(HOUSEKEEPING)
    slots = tuple(await member_records.eligible_slots(connection, run_id))
    run_event_: RunEvent
    if committed:
        length_ms = (round_.last_admitted_ms or round_.now_ms) - round_.opened_ms
        run_event_ = run_machine.RoundCommitted(transition.now_ms, slots, length_ms)
        transition.topics.add(VERSIONS)
    else:
        run_event_ = run_machine.RoundAbandoned(
            transition.now_ms, slots, round_.reason or "", round_.out_of_time
        )
    await _announce_round(transition, run_id, round_.number)
    await run_event(transition, await the_run(transition.connection, run_id), run_event_)


async def run_event(transition: Transition, run: StoredRun, event: RunEvent) -> None:
    """Step a run, save it, and do what follows."""
    state, effects = run_machine.step(run.spec, run.state, event)
    await run_records.save_run(transition.connection, run.run_id, state)
    transition.topics.add(DEADLINES)
    for effect in effects:
        match effect:
            case OpenRound():
                await _open_round(transition, run.run_id, effect)
            case CancelRound():
                await _cancel_round(transition, run.run_id, state.round)
    if state.status is not run.state.status:
        if state.status.ended:
            await _run_ended(transition, run.run_id, state)
        if state.status is RunStatus.RUNNING:
            await invite_free(transition, run.run_id)
        await announce_run(transition, run.run_id)


async def _run_ended(transition: Transition, run_id: str, state: Run) -> None:
    """Nothing is awaited any more, and what waited for a round that will not come is told so."""
    transition.untidy.add(run_id)
    transition.topics.add(HOUSEKEEPING)
    await assignment_records.settle_older_than(transition.connection, run_id, None)
    why = f"the run is {state.status.value}"
    await update_records.conclude_updates(transition.connection, run_id, None, version=None, reason=why)


def round_opened(opening: OpenRound) -> Round:
    """The round as the run machine wants it opened. PURE."""
    return Round(
        number=opening.number,
        base_version=opening.base_version,
        invited=len(opening.slots),
        target=opening.target,
        quorum=opening.quorum,
        opened_ms=opening.opened_ms,
        deadline_ms=opening.deadline_ms,
        now_ms=opening.opened_ms,
        partial=opening.partial,
        workers=opening.workers,
        extension_ms=opening.deadline_ms - opening.opened_ms,
        extensions_left=opening.extensions,
        last_deadline_ms=opening.last_deadline_ms,
        concurrency=opening.concurrency,
    )


async def _open_round(transition: Transition, run_id: str, opening: OpenRound) -> None:
    connection = transition.connection
    round_ = round_opened(opening)
    await run_records.add_round(connection, run_id, round_)
    await _announce_round(transition, run_id, opening.number)
    if round_.buffered:
        await _begin_buffer(transition, run_id, round_)
    else:
        worker_of = await member_records.eligible_slots(connection, run_id)
        invited = [(slot, worker_of[slot], opening.number) for slot in opening.slots]
        await _assign(transition, run_id, round_, invited)


async def _assign(
    transition: Transition, run_id: str, round_: Round, invited: Sequence[tuple[int, str, int]]
) -> None:
    """Args: invited: (slot, worker, turn) of each."""
    rows = [
        StoredAssignment(
            assignment_id=f"a-{secrets.token_hex(12)}",
            run_id=run_id,
            round=round_.number,
            version=round_.base_version,
            worker_id=worker_id,
            slot=slot,
            turn=turn,
        )
        for slot, worker_id, turn in invited
    ]
    await assignment_records.add_assignments(transition.connection, rows)
    transition.topics |= {worker_topic(worker_id) for _, worker_id, _ in invited}


async def _begin_buffer(transition: Transition, run_id: str, round_: Round) -> None:
    """Take up what has come since the round before it closed, and ask for more."""
    connection, number = transition.connection, round_.number
    waiting = await update_records.updates_of_round(connection, run_id, number)
    if waiting:
        size_bytes = sum(update.header.size_bytes for update in waiting)
        await run_records.add_round_traffic(connection, run_id, number, bytes_up=size_bytes)
        run, stored = await the_run(connection, run_id), await the_round(connection, run_id, number)
        staleness = tuple(round_.base_version - update.version for update in waiting)
        contributors = len({update.slot for update in waiting})
        event = round_machine.UpdatesWaited(transition.now_ms, staleness, contributors)
        await round_event(transition, run, stored, event)
    await invite_free(transition, run_id)


async def invite_free(transition: Transition, run_id: str) -> None:
    """In an asynchronous run whose round collects, give those something to do who have nothing.

    Nobody gets more from one round than would fill it, nor again what it has declined.
    """
    connection = transition.connection
    run = await the_run(connection, run_id)
    if run.spec.asynchronous is None or run.state.status is not RunStatus.RUNNING:
        return
    stored = await the_round(connection, run_id, run.state.round)
    round_ = stored.state
    places = run.spec.concurrency - await assignment_records.count_in_hand(connection, run_id)
    if round_.status is not RoundStatus.COLLECTING or places <= 0:
        return
    free = await member_records.free_members(connection, run_id, round_.number, places, round_.target)
    if free:
        await member_records.take_turns(connection, run_id, [each.worker_id for each in free])
        invited = [(each.slot, each.worker_id, each.turns + 1) for each in free]
        await _assign(transition, run_id, round_, invited)
        event = round_machine.WorkersInvited(transition.now_ms, len(free))
        await round_event(transition, run, stored, event)


async def _settle(transition: Transition, run: StoredRun, round_: Round) -> None:
    """A round is being combined: nobody is asked any more for what would come too late for the next."""
    connection = transition.connection
    if round_.buffered:
        oldest = oldest_fresh_version(run.spec, round_.base_version + 1)
        await assignment_records.settle_older_than(connection, run.run_id, oldest)
    else:
        await assignment_records.settle_round(connection, run.run_id, round_.number)


async def _cancel_round(transition: Transition, run_id: str, number: int) -> None:
    stored = await run_records.load_round(transition.connection, run_id, number)
    if stored is not None:
        run = await the_run(transition.connection, run_id)
        await round_event(transition, run, stored, round_machine.Cancelled(transition.now_ms))


async def write_down_sent_bytes(transition: Transition, run_id: str, number: int) -> None:
    sent = transition.sent_bytes[run_id] - transition.written_down[run_id]
    await run_records.add_round_traffic(transition.connection, run_id, number, bytes_down=sent)
    transition.written_down[run_id] += sent


# --- events for listeners ----------------------------------------------------------------------


async def announce_run(transition: Transition, run_id: str) -> None:
    run = await the_run(transition.connection, run_id)
    summary = await run_summary(transition.connection, run)
    await _announce(transition, run_id, "run", None, summary.model_dump_json())


async def _announce_round(transition: Transition, run_id: str, number: int) -> None:
    stored = await the_round(transition.connection, run_id, number)
    summary = (await round_summaries(transition.connection, run_id, [stored]))[0]
    await _announce(transition, run_id, "round", number, summary.model_dump_json())


async def metrics_reported(transition: Transition, run: StoredRun, version: int) -> None:
    """Tell listeners, and the run, which may have waited for this."""
    connection, run_id = transition.connection, run.run_id
    reports = await report_records.reports_of(connection, run_id, version, version)
    metrics = mean_of_reports(reports[version])
    data = json.dumps({"version": version, "metrics": metrics})
    await _announce(transition, run_id, "metrics", None, data)
    slots = tuple(await member_records.eligible_slots(connection, run_id))
    event = run_machine.MetricsReported(transition.now_ms, slots, version, metrics)
    await run_event(transition, run, event)


async def time_passed(transition: Transition, run: StoredRun) -> None:
    """Let a run whose time has come go on or end."""
    slots = tuple(await member_records.eligible_slots(transition.connection, run.run_id))
    await run_event(transition, run, run_machine.Tick(transition.now_ms, slots))


async def _announce(transition: Transition, run_id: str, kind: str, number: int | None, data: str) -> None:
    await report_records.add_event(transition.connection, run_id, kind, number, data, transition.now_ms)
    transition.topics.add(run_topic(run_id))
