# SPDX-License-Identifier: Apache-2.0
"""Statements that are one visit to the connection's thread mean what they meant with four."""

import pytest
from sqlalchemy import bindparam, insert, select, text, update
from sqlalchemy.exc import IntegrityError, OperationalError

from ps_service.storage.schema import operator_keys
from ps_service.storage.sqlite_records import SqliteRecords

KEYS = [
    {
        "secret_hash": f"hash-{number}",
        "key_id": f"k-{number}",
        "label": "a",
        "scopes": "[]",
        "created_ms": number,
    }
    for number in range(5)
]


@pytest.fixture
async def records(tmp_path):
    opened = await SqliteRecords.open(tmp_path / "records.sqlite")
    async with opened.write() as connection:
        await connection.execute(insert(operator_keys), KEYS)
    yield opened
    await opened.close()


async def labels(connection):
    return list((await connection.execute(select(operator_keys.c.label))).scalars())


async def set_all(records, label):
    async with records.write() as connection:
        done = await connection.execute(update(operator_keys).values(label=label))
        assert done.rowcount == len(KEYS)


async def test_a_read_has_one_view_from_its_first_statement_on(records):
    async with records.read() as connection:
        assert await labels(connection) == ["a"] * 5
        await set_all(records, "b")
        assert await labels(connection) == ["a"] * 5
    async with records.read() as connection:
        assert await labels(connection) == ["b"] * 5


async def test_each_statement_of_a_glance_sees_what_is_there_then(records):
    async with records.glance() as connection:
        assert await labels(connection) == ["a"] * 5
        await set_all(records, "b")
        assert await labels(connection) == ["b"] * 5


async def test_a_connection_that_has_been_looked_with_holds_nothing_back(records):
    """A transaction left open would keep its view, and every later commit in the log."""
    for _ in range(20):
        async with records.glance() as connection:
            await labels(connection)
        async with records.read():
            pass
    async with records.write() as connection:
        await connection.execute(update(operator_keys).values(label="b"))
    async with records.glance() as connection:
        busy, in_log, moved = (await connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))).one()
    assert (busy, in_log, moved) == (0, 0, 0)


async def test_what_fails_is_rolled_back_and_the_next_statement_works(records):
    for broken, error in (
        (insert(operator_keys).values(KEYS[0]), IntegrityError),
        (text("SELECT nonsense FROM nowhere"), OperationalError),
    ):
        with pytest.raises(error):
            async with records.write() as connection:
                await connection.execute(update(operator_keys).values(label="lost"))
                await connection.execute(broken)
        async with records.read() as connection:
            assert await labels(connection) == ["a"] * 5


async def test_many_rows_are_changed_in_one_statement(records):
    one = update(operator_keys).where(operator_keys.c.secret_hash == bindparam("key"))
    async with records.write() as connection:
        await connection.execute(
            one.values(label=bindparam("to")),
            [{"key": key["secret_hash"], "to": f"label-{key['created_ms']}"} for key in KEYS],
        )
    async with records.read() as connection:
        assert await labels(connection) == [f"label-{number}" for number in range(5)]
