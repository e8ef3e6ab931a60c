# SPDX-License-Identifier: Apache-2.0
"""What servers, database and object store have used, and how long the one lock was held.

Nobody counts from within how often the lock is taken and for how long, so it is seen from outside: a
transaction that writes has a number, and PostgreSQL tells the next; a look every hundredth of a second finds
the lock held, or not, and how many wait for it. Linux only.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import asyncpg

from benchmarks.cluster.stores import StoreProcesses
from benchmarks.crowd.figures import usage_of
from benchmarks.peers.procfs import all_processes

LOOK_EVERY_S = 0.01
_LOCKS = """
SELECT count(*) FILTER (WHERE granted), count(*) FILTER (WHERE NOT granted)
FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = $1)
"""
_STATE = """
SELECT xact_commit AS commits, tup_inserted + tup_updated + tup_deleted AS rows, numbackends AS connections,
       pg_database_size(datname) AS size_bytes,
       CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS bigint) AS next_number
FROM pg_stat_database WHERE datname = $1
"""


@dataclass(frozen=True)
class Spent:
    """What was used between two moments."""

    seconds: float
    servers_cpu_s: tuple[float, ...]
    postgres_cpu_s: float
    store_cpu_s: float
    commits: int
    """As PostgreSQL counts, reading ones too; its count is up to a second late."""
    rows: int
    """Inserted, changed or deleted; as late."""
    transitions: int
    """Transactions that wrote, and so had the lock."""
    lock_share: float
    """Of the looks, those that found the lock held."""
    grown_bytes: int
    """The database."""
    queue: float
    """How many waited for it, on average: at most one a server, where others wait before they ask."""

    @property
    def lock_s(self) -> float:
        """For how long the lock was held."""
        return self.lock_share * self.seconds


@dataclass(frozen=True)
class Reading:
    """What was used until now."""

    at_s: float
    servers_cpu_s: tuple[float, ...]
    postgres_cpu_s: float
    store_cpu_s: float
    commits: int
    rows: int
    transitions: int
    looks: int
    held: int
    waiting: int
    size_bytes: int
    connections: int

    def since(self, earlier: "Reading") -> Spent:
        looks = max(1, self.looks - earlier.looks)
        return Spent(
            seconds=self.at_s - earlier.at_s,
            servers_cpu_s=tuple(
                now - before for now, before in zip(self.servers_cpu_s, earlier.servers_cpu_s, strict=True)
            ),
            postgres_cpu_s=self.postgres_cpu_s - earlier.postgres_cpu_s,
            store_cpu_s=self.store_cpu_s - earlier.store_cpu_s,
            commits=self.commits - earlier.commits,
            rows=self.rows - earlier.rows,
            transitions=self.transitions - earlier.transitions,
            grown_bytes=self.size_bytes - earlier.size_bytes,
            lock_share=(self.held - earlier.held) / looks,
            queue=(self.waiting - earlier.waiting) / looks,
        )


class Observer:
    """Reads all of it for servers that share one database."""

    def __init__(self, database: str, servers: Sequence[int], stores: StoreProcesses) -> None:
        """Args: servers: process ids."""
        self._database = database
        self._servers = tuple(servers)
        self._stores = stores
        self._looks = self._held = self._waiting = 0
        self._own: set[int] = set()
        self._connection: asyncpg.Connection[Any] | None = None

    @asynccontextmanager
    async def watching(self) -> AsyncIterator["Observer"]:
        """Look at the lock again and again while this is open."""
        connections = [await asyncpg.connect(self._stores.watching_url) for _ in range(2)]
        self._connection, looking = connections
        self._own = {each.get_server_pid() for each in connections}
        task = asyncio.create_task(self._look(looking))
        try:
            yield self
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            for each in connections:
                await each.close()

    async def _look(self, connection: "asyncpg.Connection[Any]") -> None:
        while True:
            held, waiting = await connection.fetchrow(_LOCKS, self._database)
            self._looks += 1
            self._held += held > 0
            self._waiting += waiting
            await asyncio.sleep(LOOK_EVERY_S)

    async def reading(self) -> Reading:
        assert self._connection is not None
        state = await self._connection.fetchrow(_STATE, self._database)
        return Reading(
            at_s=time.monotonic(),
            servers_cpu_s=tuple(usage_of(pid).cpu_s for pid in self._servers),
            postgres_cpu_s=self._postgres_cpu_s(),
            store_cpu_s=usage_of(self._stores.s3_pid).cpu_s,
            commits=state["commits"],
            rows=state["rows"],
            transitions=state["next_number"],
            looks=self._looks,
            held=self._held,
            waiting=self._waiting,
            size_bytes=state["size_bytes"],
            connections=state["connections"],
        )

    def _postgres_cpu_s(self) -> float:
        """Of all its processes, those that have ended too, but for the ones that look."""
        parent = self._stores.postgres_pid
        return sum(
            each.cpu_s
            for each in all_processes()
            if (each.pid == parent or each.parent == parent) and each.pid not in self._own
        )
