# SPDX-License-Identifier: Apache-2.0
"""Rows, by SQLAlchemy: SQLite by default.

A transition runs inside `write()`: `BEGIN IMMEDIATE`, so that it reads what it is going to change under
the lock, and `synchronous=FULL` with WAL, so that a commit that has returned survives a power cut. What
only looks runs inside `read()`. Neither is held while waiting for anything outside the process.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DatabaseError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from protocol.errors import StorageCorrupt
from ps_service.storage.not_writable import using_database
from ps_service.storage.one_visit import BEGIN, BEGIN_IMMEDIATE, PATIENCE_MS, connect
from ps_service.storage.visits import Visits


class Records:
    """The open database. Queries are functions over a connection: `*_records.py` beside this file."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        pool = engine.pool
        assert isinstance(pool, AsyncAdaptedQueuePool)
        self.visits = Visits(engine, pool.size())
        self._directory = None if engine.url.database is None else Path(engine.url.database).parent
        # SQLite has one writer at a time: queue here, where waiting costs nothing
        self._writing = asyncio.Lock()

    @classmethod
    async def open(cls, path: Path | None) -> "Records":
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
        """A consistent view; nothing may be changed in it.

        Raises:
            StorageNotWritable: SQLite cannot read, for want of a disk that works.
        """
        with using_database(self._directory):
            async with self.visits.visit(BEGIN) as connection:
                yield connection

    @asynccontextmanager
    async def glance(self) -> AsyncIterator[AsyncConnection]:
        """For statements that only look, each by itself: a view of its own for each, and no transaction.

        Raises:
            StorageNotWritable: SQLite cannot read, for want of a disk that works.
        """
        with using_database(self._directory):
            async with self.visits.visit(None) as connection:
                yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that changes something: commits at the end, rolls back on any error.

        Raises:
            StorageNotWritable: the disk is full, read-only or failing.
        """
        with using_database(self._directory):
            async with self._writing, self.visits.visit(BEGIN_IMMEDIATE) as connection:
                yield connection

    async def check(self) -> None:
        """Commit something that changes nothing.

        Raises:
            StorageNotWritable: the disk is full, read-only or failing.
            sqlalchemy.exc.SQLAlchemyError: the database does not answer.
        """
        async with self.write() as connection:
            await connection.execute(text("UPDATE alembic_version SET version_num = version_num"))

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
