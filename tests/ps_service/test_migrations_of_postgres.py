# SPDX-License-Identifier: Apache-2.0
"""A PostgreSQL is migrated when somebody asks for it, whole or not at all, while servers of before go on."""

import asyncio
import json
import os
import secrets
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from protocol.errors import InvalidUsage, MigrationFailed, UnsupportedVersion
from ps_service.storage import migrating, migrations
from ps_service.storage.migrating import bring_to_head, schema_at
from ps_service.storage.postgres_records import PostgresRecords
from ps_service.storage.records import open_records
from ps_service.storage.schema import metadata

OF_0005 = Path(__file__).parents[1] / "golden" / "postgres-schema-0005.sql"
NEXT = f"{int(migrations.HEAD) + 1:04d}"
EXPANDS = """
op.add_column("runs", sa.Column("note", sa.Text()))
op.create_table("notes", sa.Column("note", sa.Text()))
"""
CONTRACTS = f"""
op.drop_column("workers", "refusals")
op.execute("UPDATE schema_compatibility SET oldest = '{NEXT}'")
"""
FAILS = """
op.add_column("runs", sa.Column("note", sa.Text()))
raise ZeroDivisionError
"""
LOCK_IS_WANTED = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")


@pytest.fixture
def old_database(postgres):
    """A PostgreSQL of schema 0005, in the middle of a run."""
    name = f"test-{secrets.token_hex(6)}"
    yield postgres.load(name, OF_0005)
    postgres.drop(name)


@pytest.fixture
async def opened():
    """Opens the records of a URL, whatever their schema."""
    every = []

    def open_(url):
        every.append(PostgresRecords(url))
        return every[-1]

    yield open_
    for records in every:
        await records.close()


@pytest.fixture
def a_later_version(tmp_path):
    """Makes what a later version of fed-sophia does to a database, by a migration of these lines."""

    def make(body):
        lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
        (tmp_path / f"{NEXT}_later.py").write_text(
            f"import sqlalchemy as sa\nfrom alembic import op\n\nrevision = '{NEXT}'\n"
            f"down_revision = '{migrations.HEAD}'\n\n\ndef upgrade():\n{lines}"
        )

        async def migrate(records):
            async with records.write() as connection:
                await connection.run_sync(
                    migrations.migrate, migrations.HEAD, (migrations.VERSIONS, tmp_path)
                )

        return migrate

    return make


def everything(connection):
    """{table: {column: what it is}} and its rows, of all that the oldest schema had."""
    looking = inspect(connection)
    tables = sorted(set(looking.get_table_names()) - {"alembic_version", "schema_compatibility", "condemned"})
    columns = {table: [each["name"] for each in looking.get_columns(table)] for table in tables}
    return {
        table: sorted(connection.execute(text(f"SELECT {', '.join(names)} FROM {table}")).all(), key=str)
        for table, names in columns.items()
    }


def made_of(connection):
    """Columns with their types, collations and defaults, constraints and indexes, as PostgreSQL tells."""
    columns = text(
        "SELECT table_name, column_name, data_type, character_maximum_length, collation_name, is_nullable, "
        "column_default FROM information_schema.columns WHERE table_schema = 'public'"
    )
    constraints = text(
        "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE connamespace = 'public'::regnamespace"
    )
    indexes = text("SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'")
    return [sorted(connection.execute(query).all(), key=str) for query in (columns, constraints, indexes)]


async def looked(records, look):
    async with records.read() as connection:
        return await connection.run_sync(look)


async def test_a_database_of_0005_is_brought_up_to_date_with_its_rows(old_database, new_database, opened):
    records = opened(old_database)
    before = await looked(records, everything)
    assert len(before["events"]) == 5
    assert (await bring_to_head(old_database)).version == "0005"
    added = {
        "updates": [(*row, "on-arrival") for row in before["updates"]],
        "workers": [(*row, None) for row in before["workers"]],
    }
    assert await looked(records, everything) == before | added
    schema = await schema_at(old_database)
    assert (schema.version, schema.oldest) == (migrations.HEAD, migrations.OLDEST)

    def differences(connection):
        return compare_metadata(MigrationContext.configure(connection), metadata)

    assert await looked(records, differences) == []
    made_anew = await open_records(new_database())
    assert await looked(records, made_of) == await looked(made_anew, made_of)
    await made_anew.close()


async def test_a_run_of_before_goes_on_after_the_migration(old_database, start_server):
    await bring_to_head(old_database)
    server = await start_server(where=old_database, performing=False)
    [run] = (await server.operator.get("/v1/runs")).json()["runs"]
    assert [each["status"] for each in await server.rounds(run["run_id"])] == ["committed", "collecting"]
    late = await server.enrol("late")
    assert (await late.ask()).status_code in (200, 204)


async def test_a_server_does_not_start_on_an_older_schema_and_names_the_command(old_database):
    with pytest.raises(UnsupportedVersion, match=r"0005.*needs 0008.*`fed-sophia database migrate`"):
        await open_records(old_database)
    assert (await schema_at(old_database)).version == "0005"


async def test_there_is_nothing_to_do_twice(old_database):
    assert (await bring_to_head(old_database)).version == "0005"
    assert (await bring_to_head(old_database)).version == migrations.HEAD


async def test_an_empty_database_is_made_at_once(new_database):
    url = new_database()
    assert (await schema_at(url)).version is None
    assert (await bring_to_head(url)).version is None
    await (await open_records(url)).close()


async def test_of_two_who_migrate_at_once_one_does_it(old_database, opened):
    """Two processes, which both wait for the lock when it is let go."""
    command = [sys.executable, "-P", "-m", "fed_sophia", "database", "migrate", "--json"]
    environment = os.environ | {"FED_SOPHIA_DATABASE_URL": old_database}
    async with asyncio.timeout(60), opened(old_database).write() as connection:
        both = [
            await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.PIPE)
            for _ in range(2)
        ]
        waiting = 0
        while waiting < 2:
            await asyncio.sleep(0.05)  # asked meanwhile, the transaction is not a silent one
            waiting = (await connection.execute(LOCK_IS_WANTED)).scalar_one()
    said = [json.loads((await process.communicate())[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(each["before"] for each in said) == ["0005", migrations.HEAD]
    assert [each["migrated"] for each in said].count(True) == 1


async def test_an_older_server_goes_on_and_starts_on_an_expanded_schema(
    new_database, start_server, opened, a_later_version
):
    url = new_database()
    running = await start_server(where=url, performing=False)
    run_id, cohort = await running.a_round(workers=2)
    await a_later_version(EXPANDS)(opened(url))
    assert (await schema_at(url)).version == NEXT

    started = await start_server(where=url, performing=False)  # one more of the older version
    for server, (worker, assignment) in zip((running, started), cohort, strict=True):
        await worker.moved_to(server).send(assignment)
    await started.aggregate_now()
    assert [each["status"] for each in await running.rounds(run_id)] == ["committed", "collecting"]
    assert (await schema_at(url)).version == NEXT


async def test_an_older_server_does_not_start_on_a_contracted_schema(new_database, opened, a_later_version):
    url = new_database()
    await bring_to_head(url)
    await a_later_version(CONTRACTS)(opened(url))
    with pytest.raises(UnsupportedVersion, match=rf"newer version of fed-sophia.*{NEXT}"):
        await open_records(url)


async def test_a_server_whose_schema_is_contracted_under_it_is_ready_no_more(
    new_database, start_server, opened, a_later_version
):
    url = new_database()
    server = await start_server(where=url, performing=False)
    assert (await server.operator.get("/readyz")).status_code == 200
    await a_later_version(CONTRACTS)(opened(url))
    answer = await server.operator.get("/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "not-ready")
    assert "a schema that this version does not work on" in answer.json()["detail"]


async def test_a_newer_schema_is_nothing_to_migrate_also_where_it_may_be_used(
    new_database, opened, a_later_version
):
    url = new_database()
    await bring_to_head(url)
    await a_later_version(EXPANDS)(opened(url))
    with pytest.raises(UnsupportedVersion, match="newer version of fed-sophia"):
        await bring_to_head(url)
    assert (await schema_at(url)).version == NEXT


async def test_a_migration_that_breaks_off_leaves_the_schema_of_before(new_database, opened, a_later_version):
    url = new_database()
    await bring_to_head(url)
    records = opened(url)
    before = await looked(records, made_of)
    with pytest.raises(ZeroDivisionError):
        await a_later_version(FAILS)(records)
    assert await looked(records, made_of) == before
    assert (await schema_at(url)).version == migrations.HEAD
    await (await open_records(url)).close()


async def test_who_does_not_own_the_tables_is_told_so_and_changes_nothing(old_database, opened):
    """As in an installation whose servers are let in as one user, and who migrates as another."""
    role = f"server-{secrets.token_hex(4)}"
    records = opened(old_database)
    async with records.write() as connection:
        await connection.execute(text(f'CREATE ROLE "{role}" LOGIN'))
        await connection.execute(text(f'GRANT SELECT ON ALL TABLES IN SCHEMA public TO "{role}"'))
    with pytest.raises(MigrationFailed, match="who owns the tables"):
        await bring_to_head(old_database.replace("postgres@", f"{role}@"))
    assert (await schema_at(old_database)).version == "0005"
    async with records.write() as connection:
        await connection.execute(text(f'DROP OWNED BY "{role}"'))
        await connection.execute(text(f'DROP ROLE "{role}"'))


async def test_somebody_else_s_database_is_left_alone(new_database, opened):
    url = new_database()
    records = opened(url)
    async with records.write() as connection:
        await connection.execute(text("CREATE TABLE books (title TEXT)"))
    for what in (bring_to_head, schema_at, open_records):
        with pytest.raises(InvalidUsage, match="not fed-sophia's"):
            await what(url)
    assert await looked(records, lambda connection: inspect(connection).get_table_names()) == ["books"]


async def test_a_file_is_migrated_unless_a_server_is_running_on_it(tmp_path):
    path = tmp_path / "records.sqlite"
    with pytest.raises(InvalidUsage, match="there is no database"):
        await bring_to_head(path)
    assert not path.exists()
    await (await open_records(path)).close()
    assert (await bring_to_head(path)).version == migrations.HEAD
    lock = migrating.directory_lock.hold(tmp_path)
    try:
        with pytest.raises(InvalidUsage, match="another server is running"):
            await bring_to_head(path)
        assert (await schema_at(path)).version == migrations.HEAD
    finally:
        os.close(lock)
