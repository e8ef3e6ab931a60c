# SPDX-License-Identifier: Apache-2.0
"""Queries: bytes that are about to be deleted, and those that went not long ago.

Whoever refers to bytes looks for them before its transaction, and asks in it whether they went since:
deletions have numbers, and what went is remembered for longer than anybody takes from its look to its
transaction.
"""

from collections.abc import Collection

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ps_service.storage.in_parts import in_parts
from ps_service.storage.schema import condemned

REMEMBERED_MS = 600_000
_LAST = select(func.coalesce(func.max(condemned.c.deletion), 0))


async def condemn(
    connection: AsyncConnection, digests: Collection[str], now_ms: int, given_up_ms: int
) -> set[str]:
    """From here on nobody may refer to these. Gives those that the caller has claimed, and deletes.

    Args: given_up_ms: what another has claimed before this, and not deleted, is the caller's.
    """
    query = select(condemned).where(condemned.c.digest.in_(digests))
    known = {row.digest: row for row in await connection.execute(query)}
    others = {row.digest for row in known.values() if not row.gone and row.since_ms >= given_up_ms}
    claimed = set(digests) - others
    if again := claimed & known.keys():
        claim = update(condemned).where(condemned.c.digest.in_(again))
        await connection.execute(claim.values(since_ms=now_ms, gone=False))
    rows = [{"digest": digest, "since_ms": now_ms} for digest in sorted(claimed - known.keys())]
    if rows:
        await connection.execute(insert(condemned), rows)
    return claimed


async def last_deletion(connection: AsyncConnection) -> int:
    """Its number, by which a look for bytes is known to come before a later one; 0: there was none."""
    return int((await connection.execute(_LAST)).scalar_one())


async def doomed_among(connection: AsyncConnection, digests: Collection[str], seen_after: int) -> set[str]:
    """Those of these digests that are condemned, or went since.

    Args: seen_after: the last deletion when somebody looked for them.
    """
    doomed = condemned.c.gone.is_(False) | (condemned.c.deletion > seen_after)
    found: set[str] = set()
    for some in in_parts(sorted(digests)):
        query = select(condemned.c.digest).where(condemned.c.digest.in_(some), doomed)
        found.update((await connection.execute(query)).scalars())
    return found


async def condemned_now(connection: AsyncConnection, digest: str) -> bool:
    """Whether it is about to be deleted."""
    query = select(condemned.c.gone).where(condemned.c.digest == digest)
    return (await connection.execute(query)).scalar_one_or_none() is False


async def condemned_before(connection: AsyncConnection, since_ms: int) -> set[str]:
    """Those that should have been deleted since: whoever meant to has died, or its store failed."""
    query = select(condemned.c.digest).where(condemned.c.gone.is_(False), condemned.c.since_ms < since_ms)
    return set((await connection.execute(query)).scalars())


async def have_gone(
    connection: AsyncConnection, digests: Collection[str], claimed_ms: int, now_ms: int
) -> None:
    """They are deleted: whoever stores them anew, and looks for them then, may refer to them.

    Args: claimed_ms: when the caller condemned them; what another has claimed since is its to tell.
    """
    deletion = await last_deletion(connection) + 1
    of_claim = condemned.c.gone.is_(False) & (condemned.c.since_ms == claimed_ms)
    gone = update(condemned).where(condemned.c.digest.in_(digests), of_claim)
    await connection.execute(gone.values(gone=True, deletion=deletion, since_ms=now_ms))


async def give_up(connection: AsyncConnection, digests: Collection[str], claimed_ms: int) -> None:
    """They could not be deleted, and stay condemned: whoever comes first tries again."""
    of_claim = condemned.c.gone.is_(False) & (condemned.c.since_ms == claimed_ms)
    left = update(condemned).where(condemned.c.digest.in_(digests), of_claim)
    await connection.execute(left.values(since_ms=0))


async def forget_gone(connection: AsyncConnection, now_ms: int) -> None:
    """What went long ago is no longer remembered, but for the last, whose number is not to be given again."""
    old = condemned.c.gone & (condemned.c.since_ms < now_ms - REMEMBERED_MS)
    last = await last_deletion(connection)
    await connection.execute(delete(condemned).where(old, condemned.c.deletion < last))
