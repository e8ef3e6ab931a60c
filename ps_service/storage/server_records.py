# SPDX-License-Identifier: Apache-2.0
"""Queries: which servers are there, where several share the records."""

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ps_service.storage.schema import servers


async def say_here(connection: AsyncConnection, name: str, now_ms: int) -> None:
    said = await connection.execute(update(servers).where(servers.c.name == name).values(seen_ms=now_ms))
    if not said.rowcount:
        await connection.execute(insert(servers).values(name=name, seen_ms=now_ms))


async def count_here(connection: AsyncConnection, since_ms: int) -> int:
    """How many have said so since; who has not is forgotten."""
    await connection.execute(delete(servers).where(servers.c.seen_ms < since_ms))
    return (await connection.execute(select(func.count()).select_from(servers))).scalar_one()


async def say_gone(connection: AsyncConnection, name: str) -> None:
    await connection.execute(delete(servers).where(servers.c.name == name))
