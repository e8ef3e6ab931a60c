# SPDX-License-Identifier: Apache-2.0
"""Queries: the versions of a run, and which tensors its workers may read."""

import json

from sqlalchemy import Row, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.messages import VersionSummary
from ps_service.storage.run_records import MOST_ROWS
from ps_service.storage.schema import state_tensors, versions


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
    query = select(versions.c.tensors).where(versions.c.run_id == run_id, versions.c.version == version)
    tensors: dict[str, str] = json.loads((await connection.execute(query)).scalar_one())
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


async def is_state_of(connection: AsyncConnection, run_id: str, digest: str) -> bool:
    query = select(state_tensors).where(state_tensors.c.run_id == run_id, state_tensors.c.digest == digest)
    return (await connection.execute(query)).first() is not None
