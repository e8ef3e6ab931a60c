# SPDX-License-Identifier: Apache-2.0
"""Query: an assignment with all that decides what becomes of its update, in one statement."""

from dataclasses import dataclass

from sqlalchemy import bindparam, select
from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.errors import NotFound
from protocol.messages import Receipt, RoundStatus
from ps_service.storage.assignment_records import StoredAssignment, assignment_in
from ps_service.storage.existing import the_round
from ps_service.storage.ready import Ready
from ps_service.storage.run_records import StoredRound, StoredRun, round_of, run_of
from ps_service.storage.schema import assignments, rounds, runs, updates, uploads
from ps_service.storage.update_records import receipt_of

_OF_ASSIGNMENT = Ready(
    select(
        assignments,
        runs.c.spec,
        runs.c.state.label("run_state"),
        runs.c.created_ms,
        rounds.c.state.label("round_state"),
        rounds.c.bytes_up,
        rounds.c.bytes_down,
        uploads.c.upload_id,
        updates.c.digest,
        updates.c.received_ms,
        updates.c.admitted,
        updates.c.outcome,
        updates.c.version.label("counted_in"),
        updates.c.reason,
    )
    .join(runs, runs.c.run_id == assignments.c.run_id)
    .join(rounds, (rounds.c.run_id == assignments.c.run_id) & (rounds.c.number == assignments.c.round))
    .outerjoin(uploads, uploads.c.assignment_id == assignments.c.assignment_id)
    .outerjoin(updates, updates.c.assignment_id == assignments.c.assignment_id)
    .where(assignments.c.assignment_id == bindparam("assignment_id"))
)


@dataclass(frozen=True)
class Situation:
    """Where an assignment stands."""

    assignment: StoredAssignment
    run: StoredRun
    round: StoredRound
    """In which it was given."""
    upload_id: str | None
    """What its worker has declared last; None: nothing."""
    receipt: Receipt | None
    """Of what was received for it."""


async def the_situation(connection: AsyncConnection, assignment_id: str) -> Situation:
    """Raises: NotFound: there is no such assignment."""
    row = await _OF_ASSIGNMENT.first(connection, assignment_id=assignment_id)
    if row is None:
        raise NotFound(f"there is no assignment {assignment_id}")
    received = row.digest is not None
    return Situation(
        assignment_in(row),
        run_of(row.run_id, row.spec, row.run_state, row.created_ms),
        round_of(row.run_id, row.round_state, row.bytes_up, row.bytes_down),
        row.upload_id,
        receipt_of(row, row.counted_in) if received else None,
    )


async def staleness_now(connection: AsyncConnection, situation: Situation) -> int:
    """How stale an update of this assignment is in the round that it can still be part of.

    Always 0 in a synchronous run. While a round is being combined, that is the round after it.
    """
    run = situation.run
    if run.spec.asynchronous is None:
        return 0
    base_version = run.state.version
    if run.state.round_open:
        open_round = await the_round(connection, run.run_id, run.state.round)
        base_version += open_round.state.status is RoundStatus.AGGREGATING
    return base_version - situation.assignment.version
