# SPDX-License-Identifier: Apache-2.0
"""The contract of the records: rows, by SQLAlchemy, in a database that one server or several of them have.

A transition runs inside `write()`: nobody else writes meanwhile, in this process or another, so that it reads
what it is going to change as it will be when it is changed; and a commit that has returned survives a power
cut. What only looks runs inside `read()`. Neither is held while waiting for anything outside the process.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from protocol.errors import NotReady
from ps_service.storage.migrations import HEAD


class Records(ABC):
    """The open database. Queries are functions over a connection: `*_records.py` beside this file."""

    engine: AsyncEngine
    shared: bool
    """Whether other servers may have them too."""

    @abstractmethod
    def read(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A consistent view; nothing may be changed in it.

        Raises:
            StorageNotWritable: the database cannot read, for want of a disk that works.
            NotReady: it cannot be reached.
        """

    @abstractmethod
    def glance(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """For statements that only look, each by itself: a view of its own for each, and no transaction.

        Raises: as `read`.
        """

    @abstractmethod
    def write(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A transaction that changes something: commits at the end, rolls back on any error.

        Raises:
            StorageNotWritable: the disk is full, read-only or failing.
            NotReady: the database cannot be reached. Where it was lost during the commit, that may have
                taken place all the same.
        """

    def write_aside(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A write transaction that nobody waits for, where the database can.

        It changes rows that no transition reads, and holds (`hold_worker`) the one that it relies on.

        Raises: as `write`.
        """
        return self.write()

    @abstractmethod
    async def now_ms(self, connection: AsyncConnection) -> int:
        """UTC by the database's clock, on which servers that share it agree."""

    @abstractmethod
    async def announce(self, connection: AsyncConnection, topics: Collection[str]) -> None:
        """Ring these topics at the bells of the other servers, once what `connection` writes is committed."""

    @abstractmethod
    async def hear(self, ring: Callable[[Iterable[str]], None], ring_all: Callable[[], None]) -> None:
        """Ring what other servers announce, for as long as this runs; where there are none it returns.

        Args: ring_all: called where some may have been missed.
        """

    async def check(self) -> None:
        """Commit something that changes nothing.

        Raises:
            StorageNotWritable, NotReady: as `write`; or its schema leaves this version behind meanwhile.
            sqlalchemy.exc.SQLAlchemyError: the database does not answer.
        """
        async with self.write() as connection:
            await connection.execute(text("UPDATE alembic_version SET version_num = version_num"))
            oldest = (await connection.execute(text("SELECT oldest FROM schema_compatibility"))).scalar_one()
        if oldest > HEAD:
            raise NotReady("the database was brought to a schema that this version does not work on")

    @abstractmethod
    async def close(self) -> None: ...


async def open_records(where: Path | str | None) -> Records:
    """Open (and create or migrate) a database.

    Args: where: a file, or the URL of a PostgreSQL; None keeps it in memory, for tests.

    Raises:
        InvalidUsage: the URL is none, or what it takes is not installed.
        NotReady: the PostgreSQL cannot be reached.
        StorageCorrupt: the file is no database, or a broken one.
        StorageNotWritable: the disk is full, read-only or failing.
        UnsupportedVersion: another version of fed-sophia made it.
    """
    if isinstance(where, str):
        from ps_service.storage.postgres_records import PostgresRecords

        return await PostgresRecords.open(where)
    from ps_service.storage.sqlite_records import SqliteRecords

    return await SqliteRecords.open(where)
