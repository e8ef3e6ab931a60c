# SPDX-License-Identifier: Apache-2.0
"""The contract of `storage/records.py`, for a file and for a real PostgreSQL."""

import asyncio

import pytest
from sqlalchemy import func, insert, select, text

from protocol.errors import NotReady
from ps_service.storage import member_records, report_records
from ps_service.storage.records import open_records
from ps_service.storage.schema import members, operator_keys, workers


@pytest.fixture(params=["file", "postgres"])
async def open_again(request, tmp_path):
    """Opens the same records each time it is called, as another server would."""
    where = tmp_path / "records.sqlite"
    if request.param == "postgres":
        where = request.getfixturevalue("new_database")()
    opened = []

    async def open_them():
        opened.append(await open_records(where))
        return opened[-1]

    yield open_them
    for records in opened:
        await records.close()


@pytest.fixture
async def records(open_again):
    return await open_again()


@pytest.fixture(params=["memory", "file", "postgres"])
async def any_records(request, tmp_path):
    """Of these there may be one server alone."""
    where = {"memory": None, "file": tmp_path / "records.sqlite"}
    if request.param == "postgres":
        where["postgres"] = request.getfixturevalue("new_database")()
    records = await open_records(where[request.param])
    yield records
    await records.close()


async def add_key(connection, name="x"):
    row = {"secret_hash": name, "key_id": name, "label": "test", "scopes": "[]", "created_ms": 0}
    await connection.execute(insert(operator_keys).values(row))


async def keys(records):
    async with records.read() as connection:
        return (await connection.execute(select(func.count()).select_from(operator_keys))).scalar_one()


async def test_what_was_committed_is_there_for_whoever_opens_them_next(records, open_again):
    async with records.write() as connection:
        await add_key(connection)
    assert await keys(await open_again()) == 1


async def test_an_error_takes_everything_back_and_harms_nobody_after_it(any_records):
    records = any_records
    with pytest.raises(ZeroDivisionError):
        async with records.write() as connection:
            await add_key(connection)
            raise ZeroDivisionError
    assert await keys(records) == 0
    async with records.write() as connection:
        await add_key(connection)
    assert await keys(records) == 1


async def test_a_writer_that_is_cut_off_leaves_nothing_and_lets_the_next_one_in(any_records):
    records = any_records
    begun = asyncio.Event()

    async def write():
        async with records.write() as connection:
            await add_key(connection)
            begun.set()
            await asyncio.Event().wait()

    writing = asyncio.create_task(write())
    await begun.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    async with asyncio.timeout(5):
        assert await keys(records) == 0
        async with records.write() as connection:
            await add_key(connection)
    assert await keys(records) == 1


async def test_a_reader_sees_what_there_was_when_it_began(records, open_again):
    other = await open_again()
    count = select(func.count()).select_from(operator_keys)
    async with records.read() as connection:
        assert (await connection.execute(count)).scalar_one() == 0
        async with other.write() as writing:
            await add_key(writing)
        assert (await connection.execute(count)).scalar_one() == 0
    assert await keys(records) == 1


@pytest.mark.parametrize("others", [False, True])
async def test_writers_are_alone_and_each_sees_what_the_one_before_it_wrote(records, open_again, others):
    """Each counts, lets everybody else go on, and writes down what it counted: two together would clash."""
    servers = [records, await open_again()] if others else [records]

    async def write(number):
        async with servers[number % len(servers)].write() as connection:
            count = (await connection.execute(select(func.count()).select_from(operator_keys))).scalar_one()
            await asyncio.sleep(0.002)
            await add_key(connection, f"key-{count:02d}")

    await asyncio.gather(*(write(number) for number in range(30)))
    assert await keys(records) == 30


async def test_names_come_in_the_order_of_their_bytes_whatever_the_locale(records):
    names = ["b", "A", "a", "B", "_", "Z", "z", "-", "10", "9"]
    async with records.write() as connection:
        for name in names:
            await add_key(connection, name)
    async with records.read() as connection:
        found = await connection.execute(select(operator_keys.c.key_id).order_by(operator_keys.c.key_id))
        assert list(found.scalars()) == sorted(names)


async def test_events_are_numbered_in_the_order_in_which_they_are_committed(records, open_again):
    """Whoever listens asks for those behind the last one it has seen: none may come in before that."""
    servers = [records, await open_again()]
    async with records.write() as connection:
        await connection.execute(text("INSERT INTO runs VALUES ('r', 't', 's', '{}', '{}', 0)"))
    seen = []

    async def announce(number):
        async with servers[number % 2].write() as connection:
            await report_records.add_event(connection, "r", "round", number, "{}", 0)

    async def listen():
        while len(seen) < 20:
            async with records.read() as connection:
                last = seen[-1] if seen else 0
                seen.extend(e.event_id for e in await report_records.events_after(connection, "r", last))
            await asyncio.sleep(0)

    async with asyncio.timeout(20):
        await asyncio.gather(listen(), *(announce(number) for number in range(20)))
    assert len(set(seen)) == 20


async def test_a_cohort_of_any_size_takes_its_turns(records):
    count = 40_000
    ids = [f"w-{number:05d}" for number in range(count)]
    rows = [{"run_id": "r", "worker_id": each, "slot": slot, "turns": 0} for slot, each in enumerate(ids)]
    async with records.write() as connection:
        await connection.execute(text("INSERT INTO runs VALUES ('r', 't', 's', '{}', '{}', 0)"))
        worker = {"name": "n", "label": "", "role": "trainer", "tasks": "[]", "enrolled_ms": 0}
        worker |= {"last_seen_ms": 0, "refusals": 0}
        await connection.execute(insert(workers), [worker | {"worker_id": each} for each in ids])
        await connection.execute(insert(members), rows)
        await member_records.take_turns(connection, "r", ids)
        await member_records.set_free(connection, "r", ids, 7)
    async with records.read() as connection:
        turned = members.c.turns == 1, members.c.free_since_ms == 7
        found = await connection.execute(select(func.count()).select_from(members).where(*turned))
        assert found.scalar_one() == count


# --- servers that share them ----------------------------------------------------------------------


@pytest.fixture
async def shared(new_database):
    """Two servers' records of one PostgreSQL, and its URL."""
    url = new_database()
    both = [await open_records(url), await open_records(url)]
    yield both
    for records in both:
        await records.close()


async def heard_by(records):
    """Begin to listen; gives the task, the topics that ring, and how often all were rung."""
    topics, all_rung = [], asyncio.Event()
    listening = asyncio.create_task(records.hear(topics.extend, all_rung.set))
    async with asyncio.timeout(5):
        await all_rung.wait()
    return listening, topics, all_rung


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_topics_ring_at_the_other_servers_once_they_are_committed(shared):
    one, other = shared
    hearing = [await heard_by(records) for records in shared]
    with pytest.raises(ZeroDivisionError):
        async with one.write() as connection:
            await one.announce(connection, ["never"])
            raise ZeroDivisionError
    many = [f"worker/w-{number:05d}" for number in range(3000)]
    async with one.write() as connection:
        await one.announce(connection, many)
    async with other.write() as connection:
        await other.announce(connection, ["back"])
    await until(lambda: len(hearing[1][1]) == 3000 and hearing[0][1])
    assert hearing[0][1] == ["back"], "what it has rung itself it need not hear"
    assert sorted(hearing[1][1]) == many
    for listening, *_ in hearing:
        listening.cancel()


async def test_a_listener_that_was_cut_off_comes_back_and_looks_everywhere(shared):
    one, other = shared
    listening, topics, all_rung = await heard_by(other)
    all_rung.clear()
    async with one.write() as connection:
        await connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'fed-sophia listens' AND datname = current_database()"
            )
        )
    async with asyncio.timeout(10):
        await all_rung.wait()
    async with one.write() as connection:
        await one.announce(connection, ["again"])
    await until(lambda: topics == ["again"])
    listening.cancel()


async def test_a_connection_that_is_cut_is_not_ready_and_the_next_one_is(shared):
    one, other = shared
    with pytest.raises(NotReady, match="the database cannot be reached"):
        async with one.write() as connection:
            await add_key(connection)
            own = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
            async with other.glance() as elsewhere:
                await elsewhere.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": own})
            await connection.execute(select(operator_keys))
    assert await keys(one) == 0
    async with one.write() as connection:
        await add_key(connection)
    assert await keys(other) == 1


async def test_who_falls_silent_with_the_lock_loses_it_and_what_it_wrote(shared, monkeypatch):
    one, other = shared
    with pytest.raises(NotReady):
        async with one.write() as connection:
            await connection.execute(text("SET idle_in_transaction_session_timeout = 200"))
            await add_key(connection, "lost")
            async with asyncio.timeout(10), other.write() as meanwhile:
                await add_key(meanwhile, "kept")
            await add_key(connection, "too late")
    assert await keys(one) == 1


async def test_a_database_that_is_not_there_is_not_ready(postgres, new_database):
    url = new_database()
    with pytest.raises(NotReady):
        await open_records(url.replace(f":{postgres.port}/", ":1/"))
