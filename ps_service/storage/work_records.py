# SPDX-License-Identifier: Apache-2.0
"""One query: of many workers, those for whom there may be something to do. It is asked at every wait."""

import json
from collections import Counter, defaultdict
from collections.abc import Collection

from sqlalchemy import BindParameter, bindparam, literal, null, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.messages import Role, RunStatus
from ps_service.storage.one_visit import QUICK
from ps_service.storage.schema import assignments, members, runs, workers

_WORKER, _INVITED, _RUN, _MEMBER = "worker", "invited", "run", "member"
_THESE: BindParameter[str] = bindparam("worker_ids", expanding=True)
_OPEN = runs.c.status.in_([status for status in RunStatus if not status.ended])
_TOGETHER = union_all(
    select(literal(_WORKER).label("kind"), workers.c.worker_id.label("a"), workers.c.tasks.label("b")).where(
        workers.c.worker_id.in_(_THESE), workers.c.role == Role.TRAINER, workers.c.revoked_ms.is_(None)
    ),
    select(literal(_INVITED), assignments.c.worker_id, null()).where(
        assignments.c.worker_id.in_(_THESE), assignments.c.settled.is_(False)
    ),
    select(literal(_RUN), runs.c.run_id, runs.c.task).where(_OPEN),
    select(literal(_MEMBER), members.c.worker_id, runs.c.task)
    .join(runs, runs.c.run_id == members.c.run_id)
    .where(members.c.worker_id.in_(_THESE), members.c.free_since_ms.is_not(None), _OPEN),
)
_OF_FEW = _TOGETHER.execution_options(**QUICK)
FEW = 16


async def may_have_work(connection: AsyncConnection, worker_ids: Collection[str]) -> set[str]:
    """All but the trainers who are not invited, have joined every open run of their tasks, and are free."""
    rows: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    few = len(worker_ids) <= FEW
    for row in await connection.execute(_OF_FEW if few else _TOGETHER, {"worker_ids": list(worker_ids)}):
        rows[row.kind].append((row.a, row.b))
    open_runs = Counter(task for _, task in rows[_RUN])
    joined = Counter(rows[_MEMBER])
    idle = {
        worker_id
        for worker_id, tasks in rows[_WORKER]
        if all(joined[worker_id, task] == open_runs[task] for task in json.loads(tasks))
    }
    return set(worker_ids) - (idle - {worker_id for worker_id, _ in rows[_INVITED]})
