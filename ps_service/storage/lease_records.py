# SPDX-License-Identifier: Apache-2.0
"""Queries: which server performs an effect, where several could."""

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ps_service.storage.schema import leases


async def take_lease(
    connection: AsyncConnection, effect_id: int, holder: str, now_ms: int, until_ms: int
) -> bool:
    """Let this server perform it until then; False while another may."""
    held = (await connection.execute(select(leases).where(leases.c.effect_id == effect_id))).first()
    if held is None:
        row = {"effect_id": effect_id, "holder": holder, "until_ms": until_ms}
        await connection.execute(insert(leases).values(row))
        return True
    if held.holder != holder and held.until_ms > now_ms:
        return False
    await connection.execute(
        update(leases).where(leases.c.effect_id == effect_id).values(holder=holder, until_ms=until_ms)
    )
    return True


async def renew_lease(connection: AsyncConnection, effect_id: int, holder: str, until_ms: int) -> bool:
    """False if it is this server's no more: its time was over, and another has taken it."""
    renewed = await connection.execute(
        update(leases)
        .where(leases.c.effect_id == effect_id, leases.c.holder == holder)
        .values(until_ms=until_ms)
    )
    return renewed.rowcount == 1


async def give_leases_up(connection: AsyncConnection, holder: str, effect_id: int | None = None) -> int:
    """Let others perform this effect, or all that this server has taken; give how many it had."""
    query = delete(leases).where(leases.c.holder == holder)
    if effect_id is not None:
        query = query.where(leases.c.effect_id == effect_id)
    return (await connection.execute(query)).rowcount
