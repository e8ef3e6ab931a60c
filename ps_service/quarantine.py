# SPDX-License-Identifier: Apache-2.0
"""What refused updates mean for their worker: after so many in a row it is asked for nothing any more.

Only what is in an update counts, once an assignment: not that it came late, and not that bytes came to harm
on the way. An update that is admitted ends the row. An operator sees who is in quarantine and may release
it.
"""

import logging

from protocol.errors import (
    BundleMismatch,
    FedSophiaError,
    NegativeHessian,
    NotFinite,
    OutsideBound,
    ShapeMismatch,
)
from ps_service.arrivals import may_be_invited, worker_declined
from ps_service.round_runner import RoundRunner
from ps_service.storage import assignment_records, credential_records, member_records
from ps_service.storage.existing import the_worker
from ps_service.transitions import Transition

log = logging.getLogger("fed_sophia.rounds")

COUNTED = (BundleMismatch, NegativeHessian, NotFinite, OutsideBound, ShapeMismatch)
"""No honest worker sends these, but by a fault that its owner should hear of."""
_CODES = {error.code for error in COUNTED}


async def note_refusal(
    runner: RoundRunner, worker_id: str, assignment_id: str, error: FedSophiaError, quarantine_after: int
) -> bool:
    """Note for the operator why an update was not taken; whether its worker is in quarantine for it.

    Args: quarantine_after: refused updates in a row; 0: never.
    """
    async with runner.transition() as transition:
        assignment = await assignment_records.load_assignment(transition.connection, assignment_id)
        if assignment is None or assignment.worker_id != worker_id:
            return False
        counts, counted = error.code in _CODES, assignment.refused_code in _CODES
        if counts or not counted:  # what counted stays noted: it is known by that
            await assignment_records.note_refusal(transition.connection, assignment_id, error.code)
        if counted or not counts:
            return False
        return await count_refusal(transition, worker_id, error, quarantine_after)


async def count_refusal(
    transition: Transition, worker_id: str, error: FedSophiaError, quarantine_after: int
) -> bool:
    """One more update of a worker was not good; whether it is in quarantine for it."""
    connection = transition.connection
    worker = await credential_records.worker_by_id(connection, worker_id)
    if worker is None or worker.quarantined_ms is not None:
        return False
    refusals = worker.refusals + 1
    if not quarantine_after or refusals < quarantine_after:
        await credential_records.set_refusals(connection, worker_id, refusals, None)
        return False
    await credential_records.set_refusals(connection, worker_id, refusals, transition.now_ms)
    reason = f"the worker is in quarantine: {refusals} of its updates were refused"
    for assignment in await assignment_records.open_assignments_of(connection, worker_id):
        await worker_declined(transition, assignment, reason)
    log.warning(
        "worker %s is in quarantine: %d updates refused, the last: %s", worker_id, refusals, error.code
    )
    return True


async def release(runner: RoundRunner, worker_id: str) -> None:
    """End a worker's quarantine; it may be invited again.

    Raises:
        NotFound, WorkerRevoked, WorkerExpired.
    """
    async with runner.transition() as transition:
        connection = transition.connection
        worker = await the_worker(connection, worker_id)
        await credential_records.set_refusals(connection, worker_id, 0, None)
        if worker.quarantined_ms is None:
            return
        await may_be_invited(transition, await member_records.runs_of_worker(connection, worker_id))
