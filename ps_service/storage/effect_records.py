# SPDX-License-Identifier: Apache-2.0
"""Queries: what committed transitions asked for."""

from dataclasses import dataclass

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ps_service.storage.schema import effects


@dataclass(frozen=True)
class StoredEffect:
    """Something that a committed transition asked for."""

    effect_id: int
    kind: str
    run_id: str
    round: int


async def add_effect(connection: AsyncConnection, kind: str, run_id: str, number: int) -> None:
    await connection.execute(insert(effects).values(kind=kind, run_id=run_id, round=number))


async def pending_effects(connection: AsyncConnection) -> list[StoredEffect]:
    """What committed transitions asked for and is not done, oldest first."""
    rows = await connection.execute(
        select(effects).where(effects.c.done_ms.is_(None)).order_by(effects.c.effect_id)
    )
    return [StoredEffect(row.effect_id, row.kind, row.run_id, row.round) for row in rows]


async def finish_effect(connection: AsyncConnection, effect_id: int, now_ms: int) -> None:
    await connection.execute(update(effects).where(effects.c.effect_id == effect_id).values(done_ms=now_ms))
