# SPDX-License-Identifier: Apache-2.0
"""Questions about one row that every request asks: compiled once, put to SQLite itself.

To send a statement of ten microseconds through SQLAlchemy's execution takes forty. What is asked is still
SQLAlchemy's: the statement, its names and its types. A connection of another database, or one whose thread is
at work, executes it as any other.
"""

import sqlite3
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Row, Select
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import IteratorResult
from sqlalchemy.engine.result import SimpleResultMetaData
from sqlalchemy.exc import DatabaseError, DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection

from ps_service.storage.one_visit import QUICK, OneVisitConnection

DRIVER = "driver"
"""The execution option of a connection that says what is below it, where that is ours."""
_SQLITE = sqlite.dialect(paramstyle="named")


class Ready:
    """A statement that selects one row, by values that are bound by name."""

    def __init__(self, statement: Select[Any]) -> None:
        self._statement = statement.execution_options(**QUICK)
        self._sql = str(statement.compile(dialect=_SQLITE))
        columns = statement.selected_columns.values()
        self._names = SimpleResultMetaData(statement.selected_columns.keys())
        processors = [each.type.dialect_impl(_SQLITE).result_processor(_SQLITE, None) for each in columns]
        self._processors: dict[int, Callable[[Any], Any]] = {
            place: process for place, process in enumerate(processors) if process is not None
        }

    async def first(self, connection: AsyncConnection, **values: str | int | None) -> Row[Any] | None:
        """The row, or the first of several; None if there is none."""
        driver = connection.sync_connection.get_execution_options().get(DRIVER)  # type: ignore[union-attr]
        try:
            if not isinstance(driver, OneVisitConnection) or not driver.may_run_here():
                row: Row[Any] | None = (await connection.execute(self._statement, values)).first()
                return row
            found = driver.first_row(self._sql, values)
        except sqlite3.Error as error:
            raise as_sqlalchemys(error, self._sql, values) from error
        if found is None:
            return None
        if self._processors:
            found = [
                self._processors[place](value) if place in self._processors else value
                for place, value in enumerate(found)
            ]
        result: IteratorResult[Any] = IteratorResult(self._names, iter([found]))
        return result.first()


def as_sqlalchemys(error: sqlite3.Error, sql: str, values: Mapping[str, Any] | None = None) -> DBAPIError:
    """What SQLAlchemy raises for an error that SQLite itself has raised."""
    kind = OperationalError if isinstance(error, sqlite3.OperationalError) else DatabaseError
    return kind(sql, values, error)
