# SPDX-License-Identifier: Apache-2.0
"""A SQLite connection that visits its thread once a statement, or not at all.

aiosqlite gives each connection a thread, and each call a visit to it: to make a cursor, to execute, to fetch,
to close. A visit costs more than most of our statements, so here a statement and all of its rows are one,
and a BEGIN travels with the first statement after it. It fits because SQLAlchemy fetches everything at once
anyhow.

A statement that is marked `quick` (a few rows by their key) takes less than the way to the thread and back,
during which everybody else who wants to write waits: it is run where it is asked. What may wait for a disk or
for a lock never is: BEGIN IMMEDIATE, and a commit that has something to write down.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import aiosqlite

BEGIN, BEGIN_IMMEDIATE = "BEGIN", "BEGIN IMMEDIATE"
QUICK: dict[str, Any] = {"quick": True}
"""Execution options of a statement that is run where it is asked."""
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

    quick = False
    """Whether the next statement is."""
    _begins: str | None = None
    """What begins a transaction with the next statement."""
    _changes_before = 0
    _in_thread = False

    def cursor(self) -> "OneVisitCursor":  # type: ignore[override]  # entered as the other one is
        return OneVisitCursor(self)

    def begin_with_the_next(self, sql: str) -> None:
        self._begins = sql

    async def commit(self) -> None:
        self._begins = None
        if self._has_changed_nothing():
            self._conn.commit()
        elif self.in_transaction:
            await super().commit()

    async def rollback(self) -> None:
        self._begins = None
        if self._has_changed_nothing():
            self._conn.rollback()
        elif self.in_transaction:  # a connection is rolled back whenever it goes back to the pool
            await super().rollback()

    def _has_changed_nothing(self) -> bool:
        """Whether there is a transaction that may end here and now."""
        if self._in_thread or not self.in_transaction:
            return False
        return self._conn.total_changes == self._changes_before

    async def visit(self, statement: "partial[sqlite3.Cursor]") -> Done:
        """Run a statement, on the connection's thread unless it is quick."""
        begins, self._begins = self._begins, None
        quick, self.quick = self.quick, False

        def run() -> Done:
            if begins:
                self._conn.execute(begins)
                self._changes_before = self._conn.total_changes
            cursor = statement()
            rows = cursor.fetchall()
            done = Done(rows, cursor.description, cursor.rowcount, cursor.lastrowid)
            cursor.close()
            return done

        def run_in_thread() -> Done:
            try:
                return run()
            finally:
                self._in_thread = False

        if quick and begins != BEGIN_IMMEDIATE and not self._in_thread:
            return run()
        self._in_thread = True  # longer than this waits, if it is cancelled
        done: Done = await self._execute(run_in_thread)  # type: ignore[no-untyped-call]
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
        if sql in (BEGIN, BEGIN_IMMEDIATE):
            self._connection.begin_with_the_next(sql)
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
