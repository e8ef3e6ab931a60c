# SPDX-License-Identifier: Apache-2.0
"""A SQLite connection that visits its thread once a statement, or not at all.

aiosqlite gives each connection a thread, and each call a visit to it: to make a cursor, to execute, to fetch,
to close. A visit costs more than most of our statements, so here a statement and all of its rows are one,
and a BEGIN travels with the first statement after it. It fits because SQLAlchemy fetches everything at once
anyhow.

A statement that is marked `quick` (a few rows by their key) takes less than the way to the thread and back,
during which everybody else who wants to write waits: it is run where it is asked. What may wait for a disk or
for a lock never is: a commit that has something to write down, BEGIN IMMEDIATE while another process writes.
"""

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import aiosqlite

BEGIN, BEGIN_IMMEDIATE = "BEGIN", "BEGIN IMMEDIATE"
PATIENCE_MS = 10_000
"""How long a statement waits, in its thread, for another process that writes."""
QUICK: dict[str, Any] = {"quick": True}
"""Execution options of a statement that is run where it is asked."""
Parameters = Sequence[Any]
T = TypeVar("T")


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

    @property
    def at_work(self) -> bool:
        """Whether its thread has a statement: longer than whoever asked for it waits, if that is cut off."""
        return self._in_thread

    async def commit(self) -> None:
        self._begins = None
        if not self.in_transaction:
            return
        if not self._in_thread and self._conn.total_changes == self._changes_before:
            self._conn.commit()
        else:
            await self._in_its_thread(self._conn.commit)

    async def rollback(self) -> None:
        """Nothing of a transaction that does not end is on the disk: this waits for none."""
        self._begins = None
        if self._in_thread:
            await self._in_its_thread(self._conn.rollback)
        else:  # a connection is rolled back whenever it goes back to the pool, also without a transaction
            self._conn.rollback()

    def may_run_here(self) -> bool:
        """Whether the thread is idle, and what is to begin has begun: not while another process writes."""
        if self._in_thread:
            return False
        if self._begins == BEGIN_IMMEDIATE:
            self._conn.execute("PRAGMA busy_timeout=0")
            try:
                self._begin(self._begins)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
                return False
            finally:
                self._conn.execute(f"PRAGMA busy_timeout={PATIENCE_MS}")
        else:
            self._begin(self._begins)
        self._begins = None
        return True

    def _begin(self, how: str | None) -> None:
        if how is not None:
            self._conn.execute(how)
            self._changes_before = self._conn.total_changes

    def first_row(self, sql: str, values: Mapping[str, Any]) -> Any:
        """Run a quick statement, once it may run here; give its first row, None if it has none."""
        rows = self._conn.execute(sql, values).fetchall()
        return rows[0] if rows else None

    async def visit(self, statement: "partial[sqlite3.Cursor]") -> Done:
        """Run a statement, on the connection's thread unless it is quick."""
        quick, self.quick = self.quick, False

        def run() -> Done:
            cursor = statement()
            rows = cursor.fetchall()
            done = Done(rows, cursor.description, cursor.rowcount, cursor.lastrowid)
            cursor.close()
            return done

        if quick and self.may_run_here():
            return run()
        begins, self._begins = self._begins, None

        def begin_and_run() -> Done:
            self._begin(begins)
            return run()

        return await self._in_its_thread(begin_and_run)

    async def _in_its_thread(self, work: Callable[[], T]) -> T:
        def run() -> T:
            try:
                return work()
            finally:
                self._in_thread = False

        self._in_thread = True
        done: T = await self._execute(run)  # type: ignore[no-untyped-call]
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
