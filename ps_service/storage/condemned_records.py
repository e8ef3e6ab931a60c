# SPDX-License-Identifier: Apache-2.0
"""Queries: bytes that are about to be deleted, where several servers share them. Nobody may refer to them."""

from collections.abc import Collection

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ps_service.storage.schema import condemned


async def condemn(connection: AsyncConnection, digests: Collection[str], now_ms: int) -> None:
    known = await condemned_among(connection, digests)
    rows = [{"digest": digest, "since_ms": now_ms} for digest in sorted(set(digests) - known)]
    if rows:
        await connection.execute(insert(condemned), rows)


async def condemned_among(connection: AsyncConnection, digests: Collection[str]) -> set[str]:
    """Those of these digests that are."""
    query = select(condemned.c.digest).where(condemned.c.digest.in_(digests))
    return set((await connection.execute(query)).scalars())


async def condemned_before(connection: AsyncConnection, since_ms: int) -> set[str]:
    """Those that should have been deleted since: whoever meant to has died, or its store failed."""
    query = select(condemned.c.digest).where(condemned.c.since_ms < since_ms)
    return set((await connection.execute(query)).scalars())


async def have_gone(connection: AsyncConnection, digests: Collection[str]) -> None:
    """They are deleted: whoever stores them anew may refer to them."""
    await connection.execute(delete(condemned).where(condemned.c.digest.in_(digests)))
