# SPDX-License-Identifier: Apache-2.0
"""Queries: operator keys, join tokens and workers. Secrets are stored as SHA-256 only."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sqlalchemy import Row, bindparam, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.messages import JoinTokenRequest, Role, WorkerSummary
from ps_service.storage.schema import events, join_tokens, operator_keys, workers

# built once: every request asks the one, every wait for an assignment the other
_WORKER_OF_SECRET = select(workers).where(workers.c.secret_hash == bindparam("given"))
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
    lost_ms: int | None
    revoked_ms: int | None

    def summary(self) -> WorkerSummary:
        return WorkerSummary(**vars(self))


async def latest_ms(connection: AsyncConnection) -> int:
    """The latest time that is written down of workers and of runs; 0 if there is none."""
    seen = select(func.max(workers.c.last_seen_ms))
    announced = select(events.c.at_ms).order_by(events.c.event_id.desc()).limit(1)
    found = [(await connection.execute(latest)).scalar() for latest in (seen, announced)]
    return max(at_ms or 0 for at_ms in found)


async def has_operator_key(connection: AsyncConnection) -> bool:
    return (await connection.execute(select(operator_keys.c.secret_hash).limit(1))).first() is not None


async def add_operator_key(connection: AsyncConnection, secret_hash: str, label: str, now_ms: int) -> None:
    await connection.execute(
        insert(operator_keys).values(secret_hash=secret_hash, label=label, created_ms=now_ms)
    )


async def is_operator_key(connection: AsyncConnection, secret_hash: str) -> bool:
    found = await connection.execute(select(operator_keys).where(operator_keys.c.secret_hash == secret_hash))
    return found.first() is not None


async def add_join_token(
    connection: AsyncConnection, token_id: str, secret_hash: str, request: JoinTokenRequest, now_ms: int
) -> int:
    """Store a new join token; give the time at which it expires."""
    expires_ms = now_ms + request.expires_s * 1000
    await connection.execute(
        insert(join_tokens).values(
            token_id=token_id,
            secret_hash=secret_hash,
            label=request.label,
            role=request.role.value,
            uses_left=request.uses,
            expires_ms=expires_ms,
            created_ms=now_ms,
        )
    )
    return expires_ms


async def join_token_role(connection: AsyncConnection, secret_hash: str, now_ms: int) -> Role | None:
    """The role this token grants; None if it is unknown or expired. Says nothing of uses left."""
    query = select(join_tokens.c.role).where(
        join_tokens.c.secret_hash == secret_hash, join_tokens.c.expires_ms > now_ms
    )
    role = (await connection.execute(query)).scalar()
    return None if role is None else Role(role)


async def take_join_token_use(connection: AsyncConnection, secret_hash: str) -> bool:
    """Use the token once; False if no use is left."""
    taken = await connection.execute(
        update(join_tokens)
        .where(join_tokens.c.secret_hash == secret_hash, join_tokens.c.uses_left > 0)
        .values(uses_left=join_tokens.c.uses_left - 1)
    )
    return taken.rowcount == 1


async def add_worker(connection: AsyncConnection, worker: StoredWorker, secret_hash: str) -> None:
    await connection.execute(
        insert(workers).values(
            worker_id=worker.worker_id,
            name=worker.name,
            secret_hash=secret_hash,
            role=worker.role.value,
            tasks=json.dumps(worker.tasks),
            enrolled_ms=worker.enrolled_ms,
            last_seen_ms=worker.last_seen_ms,
        )
    )


async def enrolled_again(
    connection: AsyncConnection, worker_id: str, name: str, tasks: tuple[str, ...], now_ms: int
) -> None:
    """Keep what the later enrolment says."""
    await connection.execute(
        update(workers)
        .where(workers.c.worker_id == worker_id)
        .values(name=name, tasks=json.dumps(tasks), last_seen_ms=now_ms)
    )


async def worker_by_secret(connection: AsyncConnection, secret_hash: str) -> StoredWorker | None:
    row = (await connection.execute(_WORKER_OF_SECRET, {"given": secret_hash})).first()
    return None if row is None else _worker(row)


async def worker_by_id(connection: AsyncConnection, worker_id: str) -> StoredWorker | None:
    row = (await connection.execute(select(workers).where(workers.c.worker_id == worker_id))).first()
    return None if row is None else _worker(row)


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


def _worker(row: Row[tuple[object, ...]]) -> StoredWorker:
    return StoredWorker(
        worker_id=row.worker_id,
        name=row.name,
        role=Role(row.role),
        tasks=tuple(json.loads(row.tasks)),
        enrolled_ms=row.enrolled_ms,
        last_seen_ms=row.last_seen_ms,
        lost_ms=row.lost_ms,
        revoked_ms=row.revoked_ms,
    )
