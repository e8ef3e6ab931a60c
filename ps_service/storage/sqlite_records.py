# SPDX-License-Identifier: Apache-2.0
"""Rows in one SQLite file: the records of a server that is alone.

A write transaction is `BEGIN IMMEDIATE`, so that it reads what it is going to change under the lock, and
`synchronous=FULL` with WAL makes a commit that has returned survive a power cut.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DatabaseError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from protocol.errors import StorageCorrupt
from ps_service.storage.not_writable import using_database
from ps_service.storage.one_visit import BEGIN, BEGIN_IMMEDIATE, PATIENCE_MS, connect
from ps_service.storage.records import Records
from ps_service.storage.visits import Visits


class SqliteRecords(Records):
    """The open file."""

    shared = False

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        pool = engine.pool
        assert isinstance(pool, AsyncAdaptedQueuePool)
        self.visits = Visits(engine, pool.size())
        self._directory = None if engine.url.database is None else Path(engine.url.database).parent
        # SQLite has one writer at a time: queue here, where waiting costs nothing
        self._writing = asyncio.Lock()

    @classmethod
    async def open(cls, path: Path | None) -> "SqliteRecords":
        """Open (and create or migrate) the database in this file; None keeps it in memory, for tests.

        In memory it is lost with its connection, which a cancelled statement closes.

        Raises:
            StorageCorrupt: the file is no database, or a broken one.
            StorageNotWritable: the disk is full, read-only or failing.
            UnsupportedVersion: a newer version of fed-sophia made it.
        """
        from ps_service.storage import migrations

        engine = _sqlite_engine(path)
        try:
            with using_database(path and path.parent):
                async with engine.connect() as connection:
                    await connection.run_sync(migrations.upgrade)
        except DatabaseError as error:
            await engine.dispose()
            raise StorageCorrupt(f"database {path}: {error.orig}") from error
        except BaseException:
            await engine.dispose()
            raise
        return cls(engine)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        with using_database(self._directory):
            async with self.visits.visit(BEGIN) as connection:
                yield connection

    @asynccontextmanager
    async def glance(self) -> AsyncIterator[AsyncConnection]:
        with using_database(self._directory):
            async with self.visits.visit(None) as connection:
                yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        with using_database(self._directory):
            async with self._writing, self.visits.visit(BEGIN_IMMEDIATE) as connection:
                yield connection

    async def now_ms(self, connection: AsyncConnection) -> int:
        return time.time_ns() // 1_000_000

    async def announce(self, connection: AsyncConnection, topics: Collection[str]) -> None:
        """A file has one server."""

    async def hear(self, ring: Callable[[Iterable[str]], None], ring_all: Callable[[], None]) -> None:
        """A file has one server."""

    async def close(self) -> None:
        await self.visits.close()
        await self.engine.dispose()


def _sqlite_engine(path: Path | None) -> AsyncEngine:
    connecting = partial(connect, path)
    if path is None:
        # the database lives and dies with its one connection: it must never be used by two at a time
        engine = create_async_engine(
            "sqlite+aiosqlite://",
            async_creator=connecting,
            poolclass=AsyncAdaptedQueuePool,
            pool_size=1,
            max_overflow=0,
        )
    else:
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{path}", async_creator=connecting, pool_size=16, max_overflow=0
        )
    _own_transactions(engine.sync_engine)
    return engine


def _own_transactions(engine: Engine) -> None:
    """Take the decision when a transaction begins away from the driver: it begins too late to lock."""

    @event.listens_for(engine, "connect")
    def configure(connection: object, _record: object) -> None:
        connection.isolation_level = None  # type: ignore[attr-defined]  # the driver's own attribute
        cursor = connection.cursor()  # type: ignore[attr-defined]
        pragmas = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={PATIENCE_MS}")
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if not connection.get_execution_options().get("no_transaction", False):
            connection.exec_driver_sql(BEGIN)

    @event.listens_for(engine, "before_cursor_execute")
    def note_quick(
        connection: Connection, _cursor: object, _sql: str, _parameters: object, context: Any, _many: bool
    ) -> None:
        if context is not None and context.execution_options.get("quick"):
            driver: Any = connection.connection.driver_connection
            driver.quick = True
