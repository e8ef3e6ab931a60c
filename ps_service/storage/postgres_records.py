# SPDX-License-Identifier: Apache-2.0
"""Rows in a PostgreSQL that several servers share.

One advisory lock makes a write transaction what it is in a file: the only one. It is taken by the first
statement and goes with the transaction, however that ends; each statement after it sees all that was
committed before. Whoever holds it and falls silent, a process that was stopped for one, is cut off by the
database.
"""

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from functools import partial
from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnectionLeft
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from protocol.errors import InvalidUsage, NotReady, StorageNotWritable
from ps_service.storage.not_writable import FULL
from ps_service.storage.records import Records

try:
    import asyncpg
except ImportError as error:
    raise InvalidUsage("a PostgreSQL needs asyncpg: pip install 'fed-sophia[server,cluster]'") from error

log = logging.getLogger("fed_sophia.storage")

CONNECTIONS = 10
"""Of one server, beside the one that listens."""
CONNECT_S, STATEMENT_S = 5.0, 30.0
"""Longest time to be let in, and to be answered."""
SILENCE_MS = 10_000
"""A transaction in which nothing is asked for so long is ended by the database, and gives its lock up."""
LOCK_MS = 20_000
"""Longest wait for everybody else who writes."""
LISTEN_AGAIN_S = 1.0
ASK_EVERY_S = 10.0
"""The one that listens is asked for a sign of life."""
MOST_PAYLOAD = 7_000
"""Of one notification, in bytes; PostgreSQL takes 8000."""
_CHANNEL = "fed_sophia"
_TAKE_THE_LOCK = text("SELECT pg_advisory_xact_lock(7311150923864183297)")
_NOW_MS = text("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)")
_NOTIFY = text(f"SELECT pg_notify('{_CHANNEL}', :payload)")
_SETTINGS = {
    "application_name": "fed-sophia",
    "idle_in_transaction_session_timeout": str(SILENCE_MS),
    "lock_timeout": str(LOCK_MS),
    "synchronous_commit": "on",
    "tcp_keepalives_idle": "10",  # seconds until it asks after a server that may have vanished
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
_DISK_FULL = "53100"
_GIVEN_UP = ("08", "53", "57", "40", "55P03", "25006", "25P03")
"""SQLSTATEs, or how they begin, of what passes: lost, overloaded, shut down, in one's way, read-only."""


class PostgresRecords(Records):
    """The open database."""

    shared = True

    def __init__(self, url: str, statement_s: float = STATEMENT_S) -> None:
        """A database of which nothing is known yet, nor whether it can be reached.

        Args: statement_s: longest time to be answered.

        Raises: InvalidUsage: this is no URL of a PostgreSQL.
        """
        checked_url(url)
        self._url, self._statement_s = f"postgresql://{url.partition('://')[2]}", statement_s
        # by the driver itself, which reads all that such an address may say: TLS, its files, several hosts
        engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=partial(self._connect, "fed-sophia"),
            pool_size=CONNECTIONS,
            max_overflow=0,
            pool_timeout=statement_s,
            pool_pre_ping=True,  # nobody is to find out by a failure that a connection is gone
            hide_parameters=True,
        )
        self.engine = engine
        self._name = secrets.token_hex(8)
        """What this server puts on its notifications, which it need not hear."""
        self._reading = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self._glancing = engine.execution_options(isolation_level="AUTOCOMMIT")
        # one has the lock at a time: queue here, where waiting costs no connection
        self._writing = asyncio.Lock()
        self._writing_aside = asyncio.Semaphore(CONNECTIONS // 2)

    @classmethod
    async def open(cls, url: str) -> "PostgresRecords":
        """Open the database, and make what is to be in it if it is empty.

        Raises:
            InvalidUsage: this is no URL of a PostgreSQL, or it does not let us in.
            NotReady: it cannot be reached.
            UnsupportedVersion: its schema is not one that this version of fed-sophia works on.
        """
        from ps_service.storage import migrations

        records = cls(url)
        try:
            async with records.write() as connection:
                await connection.run_sync(migrations.make_or_require)
        except BaseException:
            await records.close()
            raise
        return records

    async def _connect(self, name: str) -> "asyncpg.Connection[Any]":
        return await asyncpg.connect(
            self._url,
            timeout=CONNECT_S,
            command_timeout=self._statement_s,
            server_settings=_SETTINGS | {"application_name": name},
        )

    def read(self) -> AbstractAsyncContextManager[AsyncConnection]:
        return self._visit(self._reading, None)

    def glance(self) -> AbstractAsyncContextManager[AsyncConnection]:
        return self._visit(self._glancing, None)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        async with self._writing, self._visit(self.engine, _TAKE_THE_LOCK) as connection:
            yield connection

    @asynccontextmanager
    async def write_aside(self) -> AsyncIterator[AsyncConnection]:
        async with self._writing_aside, self._visit(self.engine, None) as connection:
            yield connection

    @asynccontextmanager
    async def _visit(self, engine: AsyncEngine, first: TextClause | None) -> AsyncIterator[AsyncConnection]:
        async with AsyncExitStack() as stack:
            with _reaching(OSError, NoConnectionLeft, asyncpg.PostgresError, asyncpg.InterfaceError):
                connection = await stack.enter_async_context(engine.connect())
                if first is not None:
                    await connection.execute(first)
            with _reaching():  # an OSError in there may be anybody's
                yield connection
            with _reaching(OSError, asyncpg.InterfaceError):
                await connection.commit()

    async def now_ms(self, connection: AsyncConnection) -> int:
        now_ms: int = (await connection.execute(_NOW_MS)).scalar_one()
        return now_ms

    async def announce(self, connection: AsyncConnection, topics: Collection[str]) -> None:
        for some in _by_length(sorted(topics), MOST_PAYLOAD):
            await connection.execute(_NOTIFY, {"payload": json.dumps([self._name, *some])})

    async def hear(self, ring: Callable[[Iterable[str]], None], ring_all: Callable[[], None]) -> None:
        """By a connection of its own, which is made anew whenever it is lost."""

        def heard(_connection: object, _pid: int, _channel: str, payload: str) -> None:
            sender, *topics = json.loads(payload)
            if sender != self._name:
                ring(topics)

        lost_before = False
        while True:
            lost = asyncio.Event()
            try:
                connection = await self._listen(heard, lost)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                if not lost_before:
                    log.warning("other servers are not heard for now: %s", error)
                lost_before = True
            else:
                lost_before = False
                try:
                    ring_all()  # listening by now: what was announced before is looked for, too
                    await _while_it_answers(connection, lost)
                except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                    log.warning("other servers are not heard for now: %s", type(error).__name__)
                finally:
                    connection.terminate()
            await asyncio.sleep(LISTEN_AGAIN_S)

    async def _listen(self, heard: Callable[..., None], lost: asyncio.Event) -> "asyncpg.Connection[Any]":
        connection = await self._connect("fed-sophia listens")
        connection.add_termination_listener(lambda _: lost.set())
        await connection.add_listener(_CHANNEL, heard)
        return connection

    async def close(self) -> None:
        await self.engine.dispose()


async def _while_it_answers(connection: "asyncpg.Connection[Any]", lost: asyncio.Event) -> None:
    """Come back, or fail, when it is lost; a database that has vanished does not say so, and is asked."""
    while not lost.is_set():
        with suppress(TimeoutError):
            async with asyncio.timeout(ASK_EVERY_S):
                await lost.wait()
                return
        await connection.fetchval("SELECT 1", timeout=CONNECT_S)


@contextmanager
def _reaching(*also: type[Exception]) -> Iterator[None]:
    """Name the error when the database is lost, overloaded or in the way; every other passes as it is.

    Args: also: what cannot come from anything but the database here.
    """
    try:
        yield
    except DBAPIError as error:
        state = str(getattr(error.orig, "sqlstate", None) or "")
        if state == _DISK_FULL:
            raise StorageNotWritable(f"{FULL}: the database's") from error
        if error.connection_invalidated or state.startswith(_GIVEN_UP):
            raise NotReady(_words(error.orig or error)) from error
        raise
    except also as error:
        raise NotReady(_words(error)) from error


def _words(error: BaseException) -> str:
    """Without the statement, whose values are nobody's."""
    return f"the database cannot be reached: {type(error.__cause__ or error).__name__}"


def checked_url(url: str) -> URL:
    """Raises: InvalidUsage: this is no URL of a PostgreSQL; what it says is not repeated."""
    try:
        found = make_url(url)
    except (ArgumentError, ValueError):  # of the port, which may be a part of a password
        raise InvalidUsage("database URL: expected postgresql://user@host/name") from None
    if found.drivername not in ("postgresql", "postgres", "postgresql+asyncpg"):
        raise InvalidUsage(f"database URL: expected postgresql://…, got {found.drivername}://…")
    return found


def _by_length(names: Sequence[str], most: int) -> Iterator[list[str]]:
    """All of these, in lists of so many bytes at most as JSON."""
    some: list[str] = []
    size = 0
    for name in names:
        added = len(json.dumps(name)) + 2
        if some and size + added > most:
            yield some
            some, size = [], 0
        some.append(name)
        size += added
    if some:
        yield some
