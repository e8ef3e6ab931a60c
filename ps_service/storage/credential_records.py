# SPDX-License-Identifier: Apache-2.0
"""Queries: workers, and who of them shows an access token."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import Row, bindparam, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.messages import Role, WorkerSummary
from ps_service.storage.ready import Ready
from ps_service.storage.schema import access_tokens, events, workers

# built once: every request asks the one, every wait for an assignment the other
_WORKER_OF_TOKEN = Ready(
    select(workers)
    .join(access_tokens, access_tokens.c.worker_id == workers.c.worker_id)
    .where(access_tokens.c.token_hash == bindparam("given"), access_tokens.c.expires_ms > bindparam("now_ms"))
)
_WORKER = Ready(select(workers).where(workers.c.worker_id == bindparam("worker_id")))
_WORKERS = select(workers).where(workers.c.worker_id.in_(bindparam("worker_ids", expanding=True)))


@dataclass(frozen=True)
class StoredWorker:
    """An enrolled worker."""

    worker_id: str
    name: str
    role: Role
    tasks: tuple[str, ...]
    enrolled_ms: int
    last_seen_ms: int
    lost_ms: int | None = None
    revoked_ms: int | None = None
    label: str = "default"
    run_id: str | None = None
    """The one run that it may take part in; None: all whose task it serves."""
    approved_ms: int | None = None
    expired_ms: int | None = None
    key_thumbprint: str | None = None
    public_key: str | None = None
    token_id: str | None = None
    idle_s: int | None = None
    refusals: int = 0
    quarantined_ms: int | None = None
    device: str | None = None
    """What it trains on, in its own words."""

    def summary(self) -> WorkerSummary:
        return WorkerSummary.model_validate(vars(self))

    @property
    def in_good_standing(self) -> bool:
        """Whether it may be asked for anything."""
        return self.revoked_ms is None and self.expired_ms is None and self.quarantined_ms is None

    def may_serve(self, run_id: str, task: str) -> bool:
        """Whether it may take part in this run."""
        return task in self.tasks and self.run_id in (None, run_id)


async def latest_ms(connection: AsyncConnection) -> int:
    """The latest time that is written down of workers and of runs; 0 if there is none."""
    seen = select(func.max(workers.c.last_seen_ms))
    announced = select(events.c.at_ms).order_by(events.c.event_id.desc()).limit(1)
    found = [(await connection.execute(latest)).scalar() for latest in (seen, announced)]
    return max(at_ms or 0 for at_ms in found)


async def add_worker(connection: AsyncConnection, worker: StoredWorker) -> None:
    row = vars(worker) | {"role": worker.role.value, "tasks": json.dumps(worker.tasks)}
    await connection.execute(insert(workers).values(row))


async def enrolled_again(
    connection: AsyncConnection, worker_id: str, name: str, tasks: tuple[str, ...], now_ms: int
) -> None:
    """Keep what the later enrolment says."""
    await connection.execute(
        update(workers)
        .where(workers.c.worker_id == worker_id)
        .values(name=name, tasks=json.dumps(tasks), last_seen_ms=now_ms)
    )


async def revive(connection: AsyncConnection, worker: StoredWorker) -> None:
    """An expired worker has enrolled again, by a token that may say other things than the one before."""
    await connection.execute(
        update(workers)
        .where(workers.c.worker_id == worker.worker_id)
        .values(
            expired_ms=None,
            token_id=worker.token_id,
            label=worker.label,
            run_id=worker.run_id,
            idle_s=worker.idle_s,
            approved_ms=worker.approved_ms,
        )
    )


async def worker_by_key(connection: AsyncConnection, key_thumbprint: str) -> StoredWorker | None:
    query = select(workers).where(workers.c.key_thumbprint == key_thumbprint)
    row = (await connection.execute(query)).first()
    return None if row is None else _worker(row)


async def worker_by_token(connection: AsyncConnection, token_hash: str, now_ms: int) -> StoredWorker | None:
    """Whose access token this is, if it is still good."""
    row = await _WORKER_OF_TOKEN.first(connection, given=token_hash, now_ms=now_ms)
    return None if row is None else _worker(row)


async def worker_by_id(connection: AsyncConnection, worker_id: str) -> StoredWorker | None:
    row = await _WORKER.first(connection, worker_id=worker_id)
    return None if row is None else _worker(row)


async def hold_worker(connection: AsyncConnection, worker_id: str) -> None:
    """Let nobody change this worker's row before the transaction ends; a file has one writer as it is."""
    query = select(workers.c.worker_id).where(workers.c.worker_id == worker_id)
    await connection.execute(query.with_for_update(key_share=True))


async def workers_by_id(connection: AsyncConnection, worker_ids: Collection[str]) -> dict[str, StoredWorker]:
    """{worker_id: worker} of those of them that there are."""
    rows = await connection.execute(_WORKERS, {"worker_ids": list(worker_ids)})
    return {row.worker_id: _worker(row) for row in rows}


async def list_workers(
    connection: AsyncConnection, after: StoredWorker | None, limit: int
) -> list[StoredWorker]:
    """By name, beginning behind `after`."""
    query = select(workers).order_by(workers.c.name, workers.c.worker_id).limit(limit)
    if after is not None:
        same_name = (workers.c.name == after.name) & (workers.c.worker_id > after.worker_id)
        query = query.where((workers.c.name > after.name) | same_name)
    return [_worker(row) for row in await connection.execute(query)]


async def set_tasks(connection: AsyncConnection, worker_id: str, tasks: tuple[str, ...]) -> None:
    await connection.execute(
        update(workers).where(workers.c.worker_id == worker_id).values(tasks=json.dumps(tasks))
    )


async def set_device(connection: AsyncConnection, worker_id: str, device: str) -> None:
    await connection.execute(update(workers).where(workers.c.worker_id == worker_id).values(device=device))


async def set_seen(connection: AsyncConnection, seen: Mapping[str, int]) -> None:
    """Args: seen: {worker_id: when it was last heard of}."""
    at = (
        update(workers).where(workers.c.worker_id == bindparam("worker")).values(last_seen_ms=bindparam("at"))
    )
    await connection.execute(at, [{"worker": worker, "at": at_ms} for worker, at_ms in seen.items()])


async def set_lost(connection: AsyncConnection, worker_id: str, lost_ms: int | None) -> None:
    """A worker is no longer heard of; None: it is there again."""
    await connection.execute(update(workers).where(workers.c.worker_id == worker_id).values(lost_ms=lost_ms))


async def silent_workers(connection: AsyncConnection, since_ms: int, limit: int) -> list[str]:
    """Those not heard of after `since_ms` who are neither lost nor revoked, the longest silent first."""
    query = (
        select(workers.c.worker_id)
        .where(
            workers.c.last_seen_ms <= since_ms, workers.c.lost_ms.is_(None), workers.c.revoked_ms.is_(None)
        )
        .order_by(workers.c.last_seen_ms)
        .limit(limit)
    )
    return list((await connection.execute(query)).scalars())


async def revoke(connection: AsyncConnection, worker_id: str, now_ms: int) -> None:
    await connection.execute(
        update(workers)
        .where(workers.c.worker_id == worker_id, workers.c.revoked_ms.is_(None))
        .values(revoked_ms=now_ms)
    )


async def approve(connection: AsyncConnection, worker_id: str, now_ms: int) -> None:
    await connection.execute(
        update(workers)
        .where(workers.c.worker_id == worker_id, workers.c.approved_ms.is_(None))
        .values(approved_ms=now_ms)
    )


async def set_expired(connection: AsyncConnection, worker_id: str, now_ms: int) -> None:
    await connection.execute(
        update(workers).where(workers.c.worker_id == worker_id).values(expired_ms=now_ms)
    )


async def set_key(connection: AsyncConnection, worker_id: str, public_key: str, key_thumbprint: str) -> None:
    await connection.execute(
        update(workers)
        .where(workers.c.worker_id == worker_id)
        .values(public_key=public_key, key_thumbprint=key_thumbprint)
    )


async def end_refusals(connection: AsyncConnection, workers: Iterable[StoredWorker]) -> None:
    """An update of each of these was found good: it ends the row of those that were not."""
    for worker in workers:
        if worker.refusals and worker.quarantined_ms is None:
            await set_refusals(connection, worker.worker_id, 0, None)


async def set_refusals(
    connection: AsyncConnection, worker_id: str, refusals: int, quarantined_ms: int | None
) -> None:
    """Args: quarantined_ms: since when it is asked for nothing; None: it is not in quarantine."""
    await connection.execute(
        update(workers)
        .where(workers.c.worker_id == worker_id)
        .values(refusals=refusals, quarantined_ms=quarantined_ms)
    )


async def idle_workers(connection: AsyncConnection, now_ms: int, limit: int) -> list[StoredWorker]:
    """Lost workers that may be idle for only so long, and have been."""
    query = (
        select(workers)
        .where(
            workers.c.idle_s.is_not(None),
            workers.c.last_seen_ms + 1000 * workers.c.idle_s <= now_ms,
            workers.c.lost_ms.is_not(None),
            workers.c.expired_ms.is_(None),
            workers.c.revoked_ms.is_(None),
        )
        .order_by(workers.c.last_seen_ms)
        .limit(limit)
    )
    return [_worker(row) for row in await connection.execute(query)]


def _worker(row: Row[tuple[object, ...]]) -> StoredWorker:
    values = dict(row._mapping)
    return StoredWorker(**values | {"role": Role(row.role), "tasks": tuple(json.loads(row.tasks))})
