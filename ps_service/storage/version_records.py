# SPDX-License-Identifier: Apache-2.0
"""Queries: the versions of a run, and which tensors its workers may read."""

import json
from dataclasses import dataclass

from sqlalchemy import Row, bindparam, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.messages import VersionSummary
from ps_service.storage.ready import Ready
from ps_service.storage.run_records import MOST_ROWS
from ps_service.storage.schema import members, runs, state_tensors, versions

# built once: what every download asks, and every assignment
_TENSORS = Ready(
    select(versions.c.tensors).where(
        versions.c.run_id == bindparam("run_id"), versions.c.version == bindparam("version")
    )
)
_READER = Ready(
    select(runs.c.task, state_tensors.c.digest, members.c.worker_id)
    .outerjoin(
        state_tensors,
        (state_tensors.c.run_id == runs.c.run_id) & (state_tensors.c.digest == bindparam("digest")),
    )
    .outerjoin(members, (members.c.run_id == runs.c.run_id) & (members.c.worker_id == bindparam("worker_id")))
    .where(runs.c.run_id == bindparam("run_id"))
)


@dataclass(frozen=True)
class Readable:
    """What decides whether a caller may read tensors of a run."""

    task: str
    is_state: bool
    """Whether they are state of the run."""
    is_member: bool
    """Whether the worker who asks has a part in it."""


async def add_version(
    connection: AsyncConnection,
    run_id: str,
    version: int,
    round_number: int | None,
    tensors: dict[str, str],
    now_ms: int,
) -> None:
    """Record a version and let its digests be read by the run's workers."""
    await connection.execute(
        insert(versions).values(
            run_id=run_id,
            version=version,
            round=round_number,
            tensors=json.dumps(tensors),
            created_ms=now_ms,
        )
    )
    digests = set(tensors.values())
    known = await connection.execute(
        select(state_tensors.c.digest).where(
            state_tensors.c.run_id == run_id, state_tensors.c.digest.in_(digests)
        )
    )
    missing = digests - set(known.scalars())
    if missing:
        await connection.execute(
            insert(state_tensors), [{"run_id": run_id, "digest": digest} for digest in sorted(missing)]
        )


async def tensors_of(connection: AsyncConnection, run_id: str, version: int) -> dict[str, str]:
    """{bundle: digest} of a version that exists."""
    found = await _TENSORS.first(connection, run_id=run_id, version=version)
    assert found is not None
    tensors: dict[str, str] = json.loads(found.tensors)
    return tensors


async def list_versions(
    connection: AsyncConnection, run_id: str, after: int = -1, limit: int = MOST_ROWS
) -> list[VersionSummary]:
    """Oldest first, beginning behind version `after`."""
    query = select(versions).where(versions.c.run_id == run_id, versions.c.version > after)
    rows = await connection.execute(query.order_by(versions.c.version).limit(limit))
    return [_version(row) for row in rows]


async def versions_with_tensors(connection: AsyncConnection, run_id: str) -> list[VersionSummary]:
    """The versions that have not been collected, oldest first; the current one is always among them."""
    query = select(versions).where(versions.c.run_id == run_id, versions.c.collected_ms.is_(None))
    return [_version(row) for row in await connection.execute(query.order_by(versions.c.version))]


def _version(row: Row[tuple[object, ...]]) -> VersionSummary:
    return VersionSummary(
        version=row.version,
        tensors=json.loads(row.tensors),
        created_ms=row.created_ms,
        collected=row.collected_ms is not None,
    )


async def readable(
    connection: AsyncConnection, run_id: str, digest: str, worker_id: str | None
) -> Readable | None:
    """Of these tensors for this worker; None: there is no such run."""
    row = await _READER.first(connection, run_id=run_id, digest=digest, worker_id=worker_id)
    return None if row is None else Readable(row.task, row.digest is not None, row.worker_id is not None)
