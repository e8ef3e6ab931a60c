# SPDX-License-Identifier: Apache-2.0
"""Where each invited worker stands in a round, and the note that is made when its update is not taken."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.errors import (
    AssignmentDeclined,
    Fault,
    FedSophiaError,
    NotFound,
    RoundClosed,
    RunEnded,
    TooStale,
    UpdateConflict,
    UploadOffsetMismatch,
)
from protocol.messages import Outcome, Standing, WorkerInRound
from ps_service.storage import update_records
from ps_service.storage.credential_records import StoredWorker
from ps_service.storage.update_records import Invited

NoteRefusal = Callable[[str, str, FedSophiaError], Awaitable[None]]
"""(worker, assignment, why its update was not taken)."""

log = logging.getLogger("fed_sophia.rounds")

NOT_OF_THE_UPDATE = (
    AssignmentDeclined,
    NotFound,
    RoundClosed,
    RunEnded,
    TooStale,
    UpdateConflict,
    UploadOffsetMismatch,
)
"""These say when an update came, not what is wrong with it."""


@asynccontextmanager
async def noting_refusals(note: NoteRefusal, worker: StoredWorker, assignment_id: str) -> AsyncIterator[None]:
    """What is raised inside because of the update itself is noted for the operator, and raised on."""
    try:
        yield
    except FedSophiaError as error:
        of_update = error.fault is Fault.CALLER and not error.retryable
        if of_update and not isinstance(error, NOT_OF_THE_UPDATE):
            try:
                await note(worker.worker_id, assignment_id, error)
            except Exception:
                log.exception("the refusal of %s was not noted", assignment_id)
        raise


async def workers_in_round(
    connection: AsyncConnection, run_id: str, number: int, after: int, limit: int
) -> list[WorkerInRound]:
    """Each worker invited to a round, by slot, beginning behind slot `after`."""
    invited = await update_records.invited_to(connection, run_id, number, after, limit)
    return [_in_round(each) for each in invited]


def _in_round(invited: Invited) -> WorkerInRound:
    standing, reason = standing_of(invited)
    return WorkerInRound(
        slot=invited.assignment.slot,
        worker_id=invited.assignment.worker_id,
        name=invited.name,
        assignment_id=invited.assignment.assignment_id,
        standing=standing,
        reason=reason,
        received_ms=None if invited.receipt is None else invited.receipt.received_ms,
    )


def standing_of(invited: Invited) -> tuple[Standing, str | None]:
    """Where an invited worker stands, and why."""
    assignment, receipt = invited.assignment, invited.receipt
    if receipt is not None:
        return _OF_OUTCOME[receipt.outcome], receipt.reason
    if assignment.refused_code is not None:  # a worker that is refused declines: the refusal is the reason
        return Standing.REFUSED, assignment.refused_code
    if assignment.declined_reason is not None:
        return Standing.DECLINED, assignment.declined_reason
    if assignment.lost_ms is not None:
        return Standing.LOST, None
    return (Standing.LATE if assignment.settled else Standing.ASKED), None


_OF_OUTCOME = {
    Outcome.PENDING: Standing.RECEIVED,
    Outcome.COUNTED: Standing.COUNTED,
    Outcome.NOT_COUNTED: Standing.NOT_COUNTED,
}
