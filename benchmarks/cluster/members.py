# SPDX-License-Identifier: Apache-2.0
"""A run with more members than could be there: what is read of all of them, by the server's own queries.

Whenever a round ends, whoever has the lock reads who may be invited, twice; and each server asks again and
again who has been silent for too long. Only the rows are made up.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection

from benchmarks.cluster.stores import Stores
from ps_service.presence import MOST_AT_ONCE
from ps_service.storage import credential_records, member_records
from ps_service.storage.postgres_records import PostgresRecords

RUN = "r-crowd"
REPEATS = 3
_NOW_MS = 1_800_000_000_000
_ROWS = (
    f"""
    INSERT INTO runs (run_id, task, status, spec, state, created_ms)
    VALUES ('{RUN}', 'crowd', 'running', '', '', {_NOW_MS})
    """,
    f"""
    INSERT INTO workers (worker_id, name, key_thumbprint, public_key, label, role, tasks,
                         enrolled_ms, approved_ms, last_seen_ms, refusals)
    SELECT 'w-' || md5(n::text), 'device-' || n, left(md5(n::text) || md5((-n)::text), 43),
           left(md5((-n)::text) || md5(n::text), 43), 'default', 'trainer', '["crowd"]',
           {_NOW_MS}, {_NOW_MS}, {_NOW_MS} + n, 0
    FROM generate_series(1, $1::integer) AS n
    """,
    f"""
    INSERT INTO members (run_id, worker_id, slot, turns, free_since_ms)
    SELECT '{RUN}', 'w-' || md5(n::text), n - 1, 0, {_NOW_MS} FROM generate_series(1, $1::integer) AS n
    """,
)


@dataclass(frozen=True)
class Listed:
    """The least of a few times each."""

    members: int
    slots_s: float
    """To read who may be invited."""
    silent_s: float
    """To ask who has been silent, when nobody has."""
    bytes_each: float
    """The database's, of a worker and its membership."""


async def measure(members: int, stores: Stores) -> Listed:
    """Fill an empty database, and ask.

    Raises:
        Internal, NotReady: the database has failed.
    """
    url = stores.environment["FED_SOPHIA_DATABASE_URL"]
    records = await PostgresRecords.open(url)
    try:
        bytes_each = await _fill(url, members)

        async def slots(connection: AsyncConnection) -> None:
            assert len(await member_records.eligible_slots(connection, RUN)) == members

        async def silent(connection: AsyncConnection) -> None:
            assert await credential_records.silent_workers(connection, _NOW_MS - 1, MOST_AT_ONCE) == []

        return Listed(members, await _least_s(records, slots), await _least_s(records, silent), bytes_each)
    finally:
        await records.close()


async def _fill(url: str, members: int) -> float:
    connection = await asyncpg.connect(url)
    try:
        before = await connection.fetchval("SELECT pg_database_size(current_database())")
        for statement in _ROWS:
            await connection.execute(statement, *([members] if "$1" in statement else []))
        await connection.execute("VACUUM ANALYZE")
        after = await connection.fetchval("SELECT pg_database_size(current_database())")
    finally:
        await connection.close()
    return float(after - before) / members


async def _least_s(records: PostgresRecords, ask: Callable[[AsyncConnection], Awaitable[None]]) -> float:
    taken = []
    for _ in range(REPEATS):
        async with records.write() as connection:
            began_s = time.perf_counter()
            await ask(connection)
            taken.append(time.perf_counter() - began_s)
    return min(taken)
