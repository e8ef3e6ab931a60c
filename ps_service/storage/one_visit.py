# SPDX-License-Identifier: Apache-2.0
"""A SQLite connection that visits its thread once a statement.

aiosqlite gives each connection a thread, and each call a visit to it: to make a cursor, to execute, to fetch,
to close. A visit costs more than most of our statements, so here a statement and all of its rows are one,
and a BEGIN, which takes no lock, travels with the first statement after it. It fits because SQLAlchemy
fetches everything at once anyhow.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import aiosqlite

BEGIN = "BEGIN"
Parameters = Sequence[Any]


class Done(NamedTuple):
    """What a statement has given."""

    rows: list[Any]
    description: Any
    rowcount: int
    lastrowid: int | None


def connect(path: Path | None) -> "OneVisitConnection":
    """A connection, to be awaited; None: to a database in memory."""
    where = ":memory:" if path is None else str(path)
    connection = OneVisitConnection(partial(sqlite3.connect, where, check_same_thread=False), 64)
    connection._thread.daemon = True  # a process that ends does not wait for it
    return connection


class OneVisitConnection(aiosqlite.Connection):
    """aiosqlite's connection with other cursors."""

    _begins = False
    """Whether a transaction begins with the next statement."""

    def cursor(self) -> "OneVisitCursor":  # type: ignore[override]  # entered as the other one is
        return OneVisitCursor(self)

    def begin_with_the_next(self) -> None:
        self._begins = True

    async def commit(self) -> None:
        self._begins = False
        if self.in_transaction:
            await super().commit()

    async def rollback(self) -> None:
        self._begins = False
        if self.in_transaction:  # a connection is rolled back whenever it goes back to the pool
            await super().rollback()

    async def visit(self, statement: "partial[sqlite3.Cursor]") -> Done:
        """Run a statement on the connection's thread."""
        begins, self._begins = self._begins, False

        def run() -> Done:
            if begins:
                self._conn.execute(BEGIN)
            cursor = statement()
            rows = cursor.fetchall()
            done = Done(rows, cursor.description, cursor.rowcount, cursor.lastrowid)
            cursor.close()
            return done

        done: Done = await self._execute(run)  # type: ignore[no-untyped-call]
        return done


class OneVisitCursor:
    """What SQLAlchemy asks of a cursor of aiosqlite."""

    arraysize = 1

    def __init__(self, connection: OneVisitConnection) -> None:
        self._connection = connection
        self._rows: list[Any] = []
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid: int | None = None

    async def __aenter__(self) -> Self:
        return self

    async def execute(self, sql: str, parameters: Parameters = ()) -> Self:
        if sql == BEGIN:
            self._connection.begin_with_the_next()
            return self
        return await self._run(partial(self._connection._conn.execute, sql, parameters))

    async def executemany(self, sql: str, parameters: Iterable[Parameters]) -> Self:
        return await self._run(partial(self._connection._conn.executemany, sql, parameters))

    async def _run(self, statement: "partial[sqlite3.Cursor]") -> Self:
        done = await self._connection.visit(statement)
        self._rows, self.description, self.rowcount, self.lastrowid = done
        return self

    async def fetchall(self) -> list[Any]:
        rows, self._rows = self._rows, []
        return rows

    async def close(self) -> None:
        """It is closed already."""
