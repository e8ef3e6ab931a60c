# SPDX-License-Identifier: Apache-2.0
"""Whether the database can be reached, has a schema that a server may use, and can be written to."""

import asyncio
import sqlite3
import statistics
import time
from contextlib import closing
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.errors import InvalidUsage, NotReady
from ps_service.doctor.finding import Finding, error, ok, warning
from ps_service.doctor.reach_postgres import cause_of, reached, remedy_for
from ps_service.settings import Settings
from ps_service.storage import migrations
from ps_service.storage.migrating import schema_of_file
from ps_service.storage.migrations import Schema

OLDEST_POSTGRES = 130_000
"""As `server_version_num` says it."""
ROUND_TRIPS = 5
SLOW_MS = 20.0
"""Every write holds the one lock for several round trips."""
BUSY_S = 5.0
MIGRATE = "run `fed-sophia database migrate`"


def check_database(settings: Settings) -> Finding:
    """Whether a server of this version would start on it."""
    url = settings.database_url.get_secret_value()
    if not url:
        return _file(settings.server_data_dir / "records.sqlite")
    try:
        return asyncio.run(_postgres(url))
    except (NotReady, DBAPIError) as met:
        return error(f"PostgreSQL: {cause_of(met)}", remedy_for(met))
    except InvalidUsage as met:
        return error(met.detail, "see FED_SOPHIA_DATABASE_URL in the list of settings")


def _file(path: Path) -> Finding:
    if not path.exists():
        return ok(f"{path} is not there yet: the first start makes it")
    schema = schema_of_file(path)
    if unusable := _unusable(schema):
        return unusable
    try:
        took_ms = _written_ms(path)
    except sqlite3.Error as met:
        return error(
            f"{path} cannot be written to: {met}",
            "free some space, mount the disk for writing, or give file and directory to the server's user",
        )
    older = "" if schema.may_be_used else ", which the next start migrates"
    return ok(f"{path}, schema {schema.version}{older}, written to in {took_ms:.1f} ms", write_ms=took_ms)


def _written_ms(path: Path) -> float:
    """Commit what changes nothing. Raises: sqlite3.Error."""
    began_s = time.perf_counter()
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_S)) as file:
        file.execute("UPDATE alembic_version SET version_num = version_num")
        file.commit()
    return round((time.perf_counter() - began_s) * 1000, 2)


async def _postgres(url: str) -> Finding:
    async with reached(url) as records:
        async with records.glance() as connection:
            version = (await connection.execute(text("SHOW server_version"))).scalar_one().partition(" ")[0]
            number = int((await connection.execute(text("SHOW server_version_num"))).scalar_one())
            may_create = (
                await connection.execute(text("SELECT has_schema_privilege(current_schema(), 'CREATE')"))
            ).scalar()
            took_ms = await _round_trip_ms(connection)
            schema = await connection.run_sync(migrations.schema_of)
        if number < OLDEST_POSTGRES:
            return error(f"PostgreSQL is {version}; 13 or later is needed", "update the PostgreSQL")
        if unusable := _unusable(schema, shared=True):
            return unusable
        if schema.version is None and not may_create:
            return error(
                "the database is empty, and its user may make no tables in it",
                "as its owner: GRANT CREATE ON SCHEMA public TO the user; or make the user its owner",
            )
        state = "empty: the first start makes it"
        if schema.version is not None:
            await records.check()
            state = f"schema {schema.version}"
    said = f"PostgreSQL {version}, {state}; a round trip takes {took_ms:.1f} ms"
    measured = {"postgres": version, "schema": schema.version or "", "round_trip_ms": took_ms}
    if took_ms > SLOW_MS:
        remedy = "bring servers and database closer: every write waits for round trips of the one before"
        return warning(said, remedy, **measured)
    return ok(said, **measured)


async def _round_trip_ms(connection: AsyncConnection) -> float:
    took_s = []
    for _ in range(ROUND_TRIPS):
        began_s = time.perf_counter()
        await connection.execute(text("SELECT 1"))
        took_s.append(time.perf_counter() - began_s)
    return round(statistics.median(took_s) * 1000, 2)


def _unusable(schema: Schema, *, shared: bool = False) -> Finding | None:
    """Why a server of this version would not start."""
    if schema.version is None or schema.may_be_used:
        return None
    said = f"the database's schema is {schema.version}, this version of fed-sophia needs {migrations.HEAD}"
    if schema.is_newer:
        return error(said, "update fed-sophia")
    return error(said, MIGRATE) if shared else None
