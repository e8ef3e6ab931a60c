# SPDX-License-Identifier: Apache-2.0
"""What schema a database has, and how it comes to this version's when somebody asks for it."""

import asyncio
import os
import sqlite3
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DatabaseError, DBAPIError
from sqlalchemy.pool import NullPool

from protocol.errors import InvalidUsage, MigrationFailed, StorageCorrupt
from ps_service.storage import directory_lock, migrations
from ps_service.storage.migrations import Schema
from ps_service.storage.not_writable import using_database
from ps_service.storage.sqlite_records import SqliteRecords

STATEMENT_S = 3600.0
"""Of a migration: it may go through all rows of a table."""
_NOT_ALLOWED = "42501"
"""The SQLSTATE."""


async def schema_at(where: Path | str) -> Schema:
    """The schema of a file, or of the PostgreSQL of a URL; nothing is changed.

    Raises:
        InvalidUsage: there is no such file, the URL is none, or what is there is somebody else's.
        NotReady: the PostgreSQL cannot be reached.
        StorageCorrupt: the file is no database.
        StorageNotWritable: the disk does not let it be opened.
    """
    if isinstance(where, Path):
        return await asyncio.to_thread(schema_of_file, where)
    from ps_service.storage.postgres_records import PostgresRecords

    records = PostgresRecords(where)
    try:
        async with records.read() as connection:
            schema: Schema = await connection.run_sync(migrations.schema_of)
            return schema
    finally:
        await records.close()


async def bring_to_head(where: Path | str) -> Schema:
    """Bring a database to this version's schema, all of it or not at all; give the schema it had before.

    In PostgreSQL nobody writes meanwhile, and of several who try at once one does it.

    Raises:
        InvalidUsage: as `schema_at`; or a server is running on the file.
        MigrationFailed: a statement failed.
        NotReady, StorageCorrupt, StorageNotWritable: as `schema_at`.
        UnsupportedVersion: its schema is newer.
    """
    if isinstance(where, Path):
        return await _bring_file_to_head(where)
    from ps_service.storage.postgres_records import PostgresRecords

    records = PostgresRecords(where, STATEMENT_S)
    try:
        async with records.write() as connection:
            return await connection.run_sync(_to_head)
    except DBAPIError as error:
        raise _failed(error) from error
    finally:
        await records.close()


def _to_head(connection: Connection) -> Schema:
    before = migrations.schema_of(connection)
    if before.version is None:
        migrations.create(connection)
    elif _is_older(before):
        migrations.migrate(connection, before.version)
    return before


async def _bring_file_to_head(path: Path) -> Schema:
    """By what a start does, while no server can start."""
    await asyncio.to_thread(schema_of_file, path)  # before a lock is made where there is no database
    lock = directory_lock.hold(path.parent)
    try:
        before = await asyncio.to_thread(schema_of_file, path)
        if before.version is None or _is_older(before):
            try:
                await (await SqliteRecords.open(path)).close()
            except DBAPIError as error:
                raise _failed(error) from error
        return before
    finally:
        os.close(lock)


def _is_older(schema: Schema) -> bool:
    """Raises: UnsupportedVersion: it is newer, which it is to stay."""
    if schema.version is not None and schema.is_newer:
        raise migrations.newer(schema.version)
    return schema.version != migrations.HEAD


def schema_of_file(path: Path) -> Schema:
    """The schema in a file. Raises: as `schema_at`."""
    if not path.exists():
        raise InvalidUsage(f"there is no database {path}: the first start of `fed-sophia serve` makes it")
    uri = f"{path.absolute().as_uri()}?mode=rw"  # which makes no new file
    engine = create_engine("sqlite://", creator=lambda: sqlite3.connect(uri, uri=True), poolclass=NullPool)
    try:
        with using_database(path.parent), engine.connect() as connection:
            return migrations.schema_of(connection)
    except DatabaseError as error:
        raise StorageCorrupt(f"database {path}: {error.orig}") from error


def _failed(error: DBAPIError) -> MigrationFailed:
    """In words of our own: those of the database may hold what is in a row."""
    kind = type(getattr(error.orig, "__cause__", None) or error.orig).__name__
    remedy = ""
    if getattr(error.orig, "sqlstate", None) == _NOT_ALLOWED:
        remedy = "; run it as the user of the database who owns the tables"
    return MigrationFailed(f"a statement failed ({kind}), and the database is as it was before{remedy}")
