# SPDX-License-Identifier: Apache-2.0
"""Looks for the work of many workers at once: one read for all who ask, whatever their number.

Mostly there is none: one statement finds that out, and only the others are looked at any closer. Who is not
yet a member of a run whose task it serves joins it first, all of them in one transaction.
"""

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.errors import FedSophiaError, Internal, NotFound
from protocol.messages import Assignment, EvaluationAssignment, Role
from ps_service.joining import join
from ps_service.round_runner import RoundRunner
from ps_service.storage import (
    assignment_records,
    credential_records,
    member_records,
    run_records,
)
from ps_service.storage.credential_records import StoredWorker
from ps_service.storage.existing import require_not_revoked
from ps_service.storage.known import Known
from ps_service.storage.work_records import may_have_work
from ps_service.summaries import assignment_of, next_evaluation

log = logging.getLogger("fed_sophia.http")

Work = Assignment | EvaluationAssignment
Found = Work | FedSophiaError | None
"""What a worker is to do, why it cannot be told, or that there is nothing to do yet."""


@dataclass
class Look:
    """What one read has shown."""

    found: dict[str, Found] = field(default_factory=dict)
    joining: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """{run_id: workers that serve its task and are no members yet, or are, and ask for something new}."""


async def look_for_work(
    runner: RoundRunner, heartbeat_s: float, worker_ids: Collection[str]
) -> Mapping[str, Found]:
    """What each of these workers is to do. What goes wrong for one of them is found for it alone.

    Raises:
        StorageNotWritable, SQLAlchemyError: nobody can be told anything.
    """
    async with runner.stores.records.glance() as connection:
        perhaps = await may_have_work(connection, worker_ids)
    if not perhaps:
        return {}
    first = await _look(runner, heartbeat_s, perhaps)
    if not first.joining:
        return first.found
    joined = {worker_id for of_run in first.joining.values() for worker_id in of_run}
    found = {worker_id: each for worker_id, each in first.found.items() if worker_id not in joined}
    try:
        await join(runner, first.joining)
    except FedSophiaError as error:  # who need not join is told what there is to do all the same
        return found | dict.fromkeys(joined, error)
    except Exception:
        log.exception("%d workers could not join runs", len(joined))
        return found | dict.fromkeys(joined, Internal("the server failed; its log has the reason"))
    # a run that is created from here on rings those who wait
    return found | (await _look(runner, heartbeat_s, joined)).found


async def _look(runner: RoundRunner, heartbeat_s: float, worker_ids: Collection[str]) -> Look:
    look = Look()
    trainers: list[StoredWorker] = []
    async with runner.stores.records.read() as connection:
        workers = await credential_records.workers_by_id(connection, worker_ids)
        for worker_id in worker_ids:
            try:
                worker = _allowed(workers, worker_id)
                if worker.role is not Role.EVALUATOR:
                    trainers.append(worker)
                    continue
                look.found[worker_id] = await next_evaluation(connection, worker, heartbeat_s)
            except FedSophiaError as error:
                look.found[worker_id] = error
        if trainers:
            await _look_for_assignments(connection, look, trainers, heartbeat_s)
            await _look_for_runs(connection, look, trainers)
    return look


def _allowed(workers: Mapping[str, StoredWorker], worker_id: str) -> StoredWorker:
    """Raises: NotFound, WorkerRevoked."""
    if worker_id not in workers:
        raise NotFound(f"there is no worker {worker_id}")
    return require_not_revoked(workers[worker_id])


async def _look_for_assignments(
    connection: AsyncConnection, look: Look, trainers: Iterable[StoredWorker], heartbeat_s: float
) -> None:
    known = Known(connection)
    worker_ids = [worker.worker_id for worker in trainers]
    for worker_id, stored in (await assignment_records.next_assignments_of(connection, worker_ids)).items():
        try:
            look.found[worker_id] = await assignment_of(known, stored, heartbeat_s)
        except FedSophiaError as error:
            look.found[worker_id] = error


async def _look_for_runs(connection: AsyncConnection, look: Look, trainers: Iterable[StoredWorker]) -> None:
    tasks = {task for worker in trainers for task in worker.tasks}
    open_runs = await run_records.open_run_ids(connection, tasks)
    if not open_runs:
        return
    worker_ids = [worker.worker_id for worker in trainers]
    joined = await member_records.memberships(connection, open_runs, worker_ids)
    for run_id, task in open_runs.items():
        for worker in trainers:
            is_free = joined.get((run_id, worker.worker_id))
            at_work = is_free is False and worker.worker_id in look.found
            if worker.may_serve(run_id, task) and not is_free and not at_work:
                look.joining[run_id].append(worker.worker_id)
