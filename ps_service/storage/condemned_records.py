# SPDX-License-Identifier: Apache-2.0
"""Queries: bytes that are about to be deleted, and those that went not long ago.

Whoever refers to bytes looks for them before its transaction, and asks in it whether they went since:
deletions have numbers, and what went is remembered for longer than anybody takes from its look to its
transaction.
"""

from collections.abc import Collection

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ps_service.storage.schema import condemned

REMEMBERED_MS = 600_000
_LAST = select(func.coalesce(func.max(condemned.c.deletion), 0))


async def condemn(connection: AsyncConnection, digests: Collection[str], now_ms: int) -> None:
    """From here on nobody may refer to these. What went long ago is no longer remembered."""
    old = condemned.c.gone & (condemned.c.since_ms < now_ms - REMEMBERED_MS)
    last = await last_deletion(connection)  # whose number is not to be given again
    await connection.execute(delete(condemned).where(old, condemned.c.deletion < last))
    query = select(condemned.c.digest).where(condemned.c.digest.in_(digests))
    again = set((await connection.execute(query)).scalars())
    if again:
        known = update(condemned).where(condemned.c.digest.in_(again))
        await connection.execute(known.values(since_ms=now_ms, gone=False))
    rows = [{"digest": digest, "since_ms": now_ms} for digest in sorted(set(digests) - again)]
    if rows:
        await connection.execute(insert(condemned), rows)


async def last_deletion(connection: AsyncConnection) -> int:
    """Its number, by which a look for bytes is known to come before a later one; 0: there was none."""
    return int((await connection.execute(_LAST)).scalar_one())


async def doomed_among(connection: AsyncConnection, digests: Collection[str], seen_after: int) -> set[str]:
    """Those of these digests that are condemned, or went since.

    Args: seen_after: the last deletion when somebody looked for them.
    """
    doomed = condemned.c.gone.is_(False) | (condemned.c.deletion > seen_after)
    query = select(condemned.c.digest).where(condemned.c.digest.in_(digests), doomed)
    return set((await connection.execute(query)).scalars())


async def condemned_before(connection: AsyncConnection, since_ms: int) -> set[str]:
    """Those that should have been deleted since: whoever meant to has died, or its store failed."""
    query = select(condemned.c.digest).where(condemned.c.gone.is_(False), condemned.c.since_ms < since_ms)
    return set((await connection.execute(query)).scalars())


async def have_gone(connection: AsyncConnection, digests: Collection[str]) -> None:
    """They are deleted: whoever stores them anew, and looks for them then, may refer to them."""
    deletion = await last_deletion(connection) + 1
    gone = update(condemned).where(condemned.c.digest.in_(digests), condemned.c.gone.is_(False))
    await connection.execute(gone.values(gone=True, deletion=deletion))
