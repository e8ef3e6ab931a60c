# SPDX-License-Identifier: Apache-2.0
"""Connections that stay open from one visit to the next.

To take a connection from SQLAlchemy's pool, begin, end and give it back costs more than the few statements
of a visit. Here a connection is taken from it once. What a visit begins travels with its first statement, and
where nothing was changed it ends where it is (`one_visit.py`).
"""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from protocol.errors import NotReady
from ps_service.storage.not_writable import is_read_only
from ps_service.storage.one_visit import OneVisitConnection
from ps_service.storage.ready import DRIVER, as_sqlalchemys

LONGEST_VISIT_S = 5.0
"""Whoever closes the connections waits no longer for a visit to end."""


@dataclass(frozen=True)
class _Open:
    """A connection, and SQLite's own below it."""

    connection: AsyncConnection
    driver: OneVisitConnection


class Visits:
    """The connections of one database that are open, each for one visit at a time."""

    def __init__(self, engine: AsyncEngine, most: int) -> None:
        """Args: most: visits at a time; who comes then waits."""
        self._engine = engine
        self._most = most
        self._places = asyncio.Semaphore(most)
        self._idle: list[_Open] = []
        self._closed = False
        self.under_way = 0
        self.begun: Counter[str] = Counter()
        """Transactions so far, by the statement that began them."""

    @asynccontextmanager
    async def visit(self, begin: str | None) -> AsyncIterator[AsyncConnection]:
        """A connection for this block. At its end what was changed is committed; any error rolls it back.

        Args: begin: the statement that begins a transaction; None: there is none, and nothing is changed.

        Raises:
            NotReady: they are closed.
        """
        async with self._places:
            if self._closed:
                raise NotReady("the server is stopping")
            visited = self._idle.pop() if self._idle else await self._open()
            self.under_way += 1
            good = False
            try:
                if begin is not None:
                    self.begun[begin] += 1
                    visited.driver.begin_with_the_next(begin)
                yield visited.connection
                await _commit(visited.driver)
                good = True
            except BaseException as error:
                # a statement that is cut off goes on in its thread, and SQLAlchemy gives the connection up
                if not (visited.driver.at_work or visited.connection.invalidated):
                    await visited.driver.rollback()
                    # a file that was opened read-only stays so: such a connection is never used again
                    good = not (isinstance(error, OperationalError) and is_read_only(error))
                raise
            finally:
                self.under_way -= 1
                if good and not self._closed:
                    self._idle.append(visited)
                else:
                    await asyncio.shield(asyncio.ensure_future(_drop(visited)))

    async def close(self) -> None:
        """Let nobody in any more, wait for those who are, and close what is open."""
        self._closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_VISIT_S):
                for _ in range(self._most):
                    await self._places.acquire()
        for _ in range(self._most):  # those who wait are to hear of it
            self._places.release()
        while self._idle:
            await self._idle.pop().connection.close()

    async def _open(self) -> _Open:
        connection = await self._engine.connect().start()
        driver = (await connection.get_raw_connection()).driver_connection
        assert isinstance(driver, OneVisitConnection)
        connection = await connection.execution_options(no_transaction=True, **{DRIVER: driver})
        return _Open(connection, driver)


async def _commit(driver: OneVisitConnection) -> None:
    """Raises: DBAPIError: as from any other statement."""
    try:
        await driver.commit()
    except sqlite3.Error as error:
        raise as_sqlalchemys(error, "COMMIT") from error


async def _drop(visited: _Open) -> None:
    await visited.connection.invalidate()
    await visited.connection.close()
