# SPDX-License-Identifier: Apache-2.0
"""The records: their schema, their transactions, and what is left when one is broken off."""

import asyncio
import contextlib
import re
import sqlite3

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, event, func, insert, select, text
from sqlalchemy.engine import Engine

from protocol.errors import InvalidUsage, NotReady, StorageCorrupt, UnsupportedVersion
from ps_service.storage import migrations
from ps_service.storage.schema import metadata, operator_keys
from ps_service.storage.sqlite_records import SqliteRecords


@pytest.fixture(params=["memory", "file"])
async def records(request, tmp_path):
    records = await SqliteRecords.open(None if request.param == "memory" else tmp_path / "records.sqlite")
    yield records
    await records.close()


async def add_key(connection, secret_hash="x"):
    await connection.execute(
        insert(operator_keys).values(
            secret_hash=secret_hash, key_id=secret_hash, label="test", scopes="[]", created_ms=0
        )
    )


async def keys(records):
    async with records.read() as connection:
        return (await connection.execute(select(func.count()).select_from(operator_keys))).scalar_one()


def tables_and_indexes(connection):
    """As SQLite keeps them; a table's columns in any order, and its name, in quotes or not, left out."""
    made = connection.execute(text("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
    return {
        name: sorted(parts_of_table(sql)) if kind == "table" else " ".join(sql.split())
        for kind, name, sql in made
    }


def parts_of_table(sql):
    between = sql[sql.index("(") + 1 : sql.rindex(")")]
    return [" ".join(part.split()) for part in re.split(r",(?![^(]*\))", between)]


async def test_a_new_database_is_what_the_migrations_make_of_an_empty_one(records):
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        migrations.migrate(connection, None)
        step_by_step = tables_and_indexes(connection)
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        made_compatible = [*connection.execute(text("SELECT oldest FROM schema_compatibility")).scalars()]
    engine.dispose()

    async with records.engine.connect() as connection:
        assert await connection.run_sync(tables_and_indexes) == step_by_step
        oldest = await connection.execute(text("SELECT oldest FROM schema_compatibility"))
        assert [*oldest.scalars()] == made_compatible == [migrations.OLDEST]
        version = await connection.execute(text("SELECT version_num FROM alembic_version"))
        assert version.scalar_one() == migrations.HEAD


async def test_a_database_is_made_whole_or_not_at_all(tmp_path):
    def fail_at_the_end(_connection, _cursor, sql, *_):
        if sql.startswith("INSERT INTO alembic_version"):
            raise ZeroDivisionError

    path = tmp_path / "records.sqlite"
    event.listen(Engine, "before_cursor_execute", fail_at_the_end)
    try:
        with pytest.raises(ZeroDivisionError):
            await SqliteRecords.open(path)
    finally:
        event.remove(Engine, "before_cursor_execute", fail_at_the_end)
    with contextlib.closing(sqlite3.connect(path)) as file:
        assert file.execute("SELECT name FROM sqlite_master").fetchall() == []

    records = await SqliteRecords.open(path)
    assert await keys(records) == 0
    await records.close()


def test_the_newest_migration_is_the_one_a_start_looks_for():
    folder = migrations.__path__[0]
    assert ScriptDirectory(folder).get_current_head() == migrations.HEAD


def test_schemas_are_told_older_from_newer_by_their_names():
    steps = [script.revision for script in ScriptDirectory(migrations.__path__[0]).walk_revisions()]
    assert steps == sorted(steps, reverse=True)
    assert all(re.fullmatch(r"\d{4}", step) for step in steps)


async def test_a_database_is_reopened_as_it_was(tmp_path):
    for expected in (0, 1):
        records = await SqliteRecords.open(tmp_path / "records.sqlite")
        assert await keys(records) == expected
        async with records.write() as connection:
            await add_key(connection, str(expected))
        await records.close()


async def test_a_transaction_may_be_cancelled_at_any_moment(tmp_path):
    """Broken off after 0, 1, 2 … turns of the loop: always all of it or nothing, and the next one works."""
    records = await SqliteRecords.open(tmp_path / "records.sqlite")
    for turns in range(25):

        async def both(turns=turns):
            async with records.write() as connection:
                await add_key(connection, f"{turns}a")
                await add_key(connection, f"{turns}b")

        task = asyncio.create_task(both())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        async with asyncio.timeout(5):
            assert await keys(records) % 2 == 0
    await records.close()


async def test_two_transitions_cannot_both_read_and_then_write(tmp_path):
    """Two processes on one file: the second waits at BEGIN, before it has read anything."""
    path = tmp_path / "records.sqlite"
    one, other = await SqliteRecords.open(path), await SqliteRecords.open(path)
    async with one.write() as connection:
        seen = (await connection.execute(select(func.count()).select_from(operator_keys))).scalar_one()

        async def second():
            async with other.write() as connection:
                return (
                    await connection.execute(select(func.count()).select_from(operator_keys))
                ).scalar_one()

        waiting = asyncio.create_task(second())
        done, _ = await asyncio.wait([waiting], timeout=0.2)
        assert not done
        await add_key(connection)
    assert seen == 0
    assert await waiting == 1
    await one.close()
    await other.close()


async def test_many_transitions_at_once_lose_no_update(records):
    async with records.write() as connection:
        await connection.execute(
            insert(operator_keys).values(secret_hash="n", key_id="n", label="0", scopes="[]", created_ms=0)
        )

    async def count_up():
        async with records.write() as connection:
            now = (await connection.execute(select(operator_keys.c.created_ms))).scalar_one()
            await connection.execute(operator_keys.update().values(created_ms=now + 1))

    await asyncio.gather(*(count_up() for _ in range(40)), *(keys(records) for _ in range(20)))
    async with records.read() as connection:
        assert (await connection.execute(select(operator_keys.c.created_ms))).scalar_one() == 40


async def test_a_reader_sees_one_moment_while_others_write(tmp_path):
    records = await SqliteRecords.open(tmp_path / "records.sqlite")
    async with records.read() as reading:
        before = (await reading.execute(select(func.count()).select_from(operator_keys))).scalar_one()
        async with records.write() as connection:
            await add_key(connection)
        after = (await reading.execute(select(func.count()).select_from(operator_keys))).scalar_one()
    assert (before, after, await keys(records)) == (0, 0, 1)
    await records.close()


async def test_a_file_that_is_no_database_is_refused_by_name(tmp_path):
    path = tmp_path / "records.sqlite"
    path.write_bytes(b"this is no database " * 500)
    with pytest.raises(StorageCorrupt, match="not a database"):
        await SqliteRecords.open(path)


async def test_a_database_with_a_torn_page_is_refused_by_name(tmp_path):
    path = tmp_path / "records.sqlite"
    await (await SqliteRecords.open(path)).close()
    path.write_bytes(path.read_bytes()[:100] + bytes([255]) * 8000)
    with pytest.raises(StorageCorrupt, match="malformed"):
        await SqliteRecords.open(path)


async def test_a_database_of_a_newer_version_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "records.sqlite"
    records = await SqliteRecords.open(path)
    async with records.write() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        await connection.execute(text("UPDATE schema_compatibility SET oldest = '9999'"))
    await records.close()
    before = path.read_bytes()
    with pytest.raises(UnsupportedVersion, match=r"made by a newer version of fed-sophia.*9999"):
        await SqliteRecords.open(path)
    assert path.read_bytes() == before


async def test_a_database_of_a_newer_version_that_says_it_may_is_used_and_left_as_it_is(tmp_path):
    path = tmp_path / "records.sqlite"
    records = await SqliteRecords.open(path)
    async with records.write() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    await records.close()
    records = await SqliteRecords.open(path)
    assert await keys(records) == 0
    async with records.read() as connection:
        schema = await connection.run_sync(migrations.schema_of)
    assert (schema.version, schema.oldest) == ("9999", migrations.OLDEST)
    await records.close()


async def test_somebody_else_s_database_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "records.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as file:
        file.execute("CREATE TABLE books (title)")
    with pytest.raises(InvalidUsage, match="not fed-sophia's"):
        await SqliteRecords.open(path)
    with contextlib.closing(sqlite3.connect(path)) as file:
        assert file.execute("SELECT name FROM sqlite_master").fetchall() == [("books",)]


async def test_commits_are_durable_and_references_are_checked(tmp_path):
    records = await SqliteRecords.open(tmp_path / "records.sqlite")
    async with records.read() as connection:
        pragmas = {
            name: (await connection.execute(text(f"PRAGMA {name}"))).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    await records.close()


async def test_records_are_closed_when_the_last_visit_has_ended_and_let_nobody_in_any_more(tmp_path):
    records = await SqliteRecords.open(tmp_path / "records.sqlite")
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def writing():
        async with records.write() as connection:
            await add_key(connection)
            begun.set()
            await may_end.wait()

    task = asyncio.create_task(writing())
    await begun.wait()
    closing = asyncio.create_task(records.close())
    done, _ = await asyncio.wait([closing], timeout=0.1)
    assert not done
    may_end.set()
    await task
    await closing
    with pytest.raises(NotReady):
        await keys(records)
    await records.close()
    records = await SqliteRecords.open(tmp_path / "records.sqlite")
    assert await keys(records) == 1
    await records.close()
