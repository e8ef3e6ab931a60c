# SPDX-License-Identifier: Apache-2.0
"""Queries: which blobs are referred to, and what stops referring to them.

A blob is referred to by the tensors of a version that is kept (`state_tensors`) and by an update that has
not been collected. The records forget first; then, under the write lock, files go that nothing refers to.
"""

from collections.abc import Collection

from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.messages import Outcome, VersionSummary
from ps_service.storage.in_parts import in_parts
from ps_service.storage.schema import state_tensors, updates, versions


async def forget_versions(
    connection: AsyncConnection,
    run_id: str,
    forgotten: Collection[VersionSummary],
    kept: Collection[VersionSummary],
    now_ms: int,
) -> set[str]:
    """Let these versions of a run have no tensors any more; give the digests the run refers to no longer."""
    if not forgotten:
        return set()
    still_needed = {digest for version in kept for digest in version.tensors.values()}
    digests = {digest for version in forgotten for digest in version.tensors.values()} - still_needed
    await connection.execute(
        update(versions)
        .where(versions.c.run_id == run_id, versions.c.version == bindparam("forgotten"))
        .values(collected_ms=now_ms),
        [{"forgotten": version.version} for version in forgotten],
    )
    if digests:
        await connection.execute(
            delete(state_tensors).where(
                state_tensors.c.run_id == run_id, state_tensors.c.digest == bindparam("forgotten")
            ),
            [{"forgotten": digest} for digest in digests],
        )
    return digests


async def forget_updates(
    connection: AsyncConnection, run_id: str, up_to_round: int, needed: Collection[str], now_ms: int
) -> set[str]:
    """Let the concluded updates of these rounds have no tensors any more; give their digests.

    Args: needed: digests of those that keep them all the same.
    """
    concluded = (
        (updates.c.run_id == run_id)
        & (updates.c.round <= up_to_round)
        & (updates.c.outcome != Outcome.PENDING.value)
        & updates.c.collected_ms.is_(None)
    )
    if not needed:
        digests = set((await connection.execute(select(updates.c.digest).where(concluded))).scalars())
        await connection.execute(update(updates).where(concluded).values(collected_ms=now_ms))
        return digests
    rows = await connection.execute(select(updates.c.assignment_id, updates.c.digest).where(concluded))
    forgotten = {row.assignment_id: row.digest for row in rows if row.digest not in needed}
    for some in in_parts(forgotten):
        collected = update(updates).where(updates.c.assignment_id.in_(some))
        await connection.execute(collected.values(collected_ms=now_ms))
    return set(forgotten.values())


async def referred_to(connection: AsyncConnection, digests: Collection[str]) -> set[str]:
    """Those of these digests that something refers to."""
    of_versions = select(state_tensors.c.digest).where(state_tensors.c.digest.in_(digests))
    of_updates = select(updates.c.digest).where(
        updates.c.digest.in_(digests), updates.c.collected_ms.is_(None)
    )
    found = await connection.execute(of_versions.union(of_updates))
    return set(found.scalars())
