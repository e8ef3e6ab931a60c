# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of several servers makes of what it has seen."""

import asyncio
import os
from collections.abc import Callable

import asyncpg
import pytest

from benchmarks.cluster.figures import admitted, columns, number, per_unit, rested, uploaded
from benchmarks.cluster.idle import Admitted, Rested
from benchmarks.cluster.observer import Observer, Spent
from benchmarks.cluster.stores import StoreProcesses
from benchmarks.cluster.uploads import Uploaded
from benchmarks.exchange.rounds import Plan
from tests.postgres import Postgres
from tests.s3 import S3Server


def spent(
    *servers_cpu_s: float, seconds: float = 10.0, transitions: int = 0, lock_share: float = 0.0
) -> Spent:
    return Spent(
        seconds=seconds,
        servers_cpu_s=servers_cpu_s,
        postgres_cpu_s=1.0,
        store_cpu_s=0.5,
        commits=2 * transitions,
        rows=0,
        transitions=transitions,
        grown_bytes=1000 * transitions,
        lock_share=lock_share,
        queue=0.0,
    )


def test_what_one_costs_is_the_sum_of_all_servers_over_the_number_of_units() -> None:
    one = per_unit(spent(1.0, 3.0, transitions=400, lock_share=0.2), units=200)
    assert (one["server_cpu_ms"], one["postgres_cpu_ms"], one["store_cpu_ms"]) == (20.0, 5.0, 2.5)
    assert (one["commits"], one["transitions"], one["database_bytes"]) == (4.0, 2.0, 2000)


def test_the_lock_admits_as_many_as_fit_between_each_other() -> None:
    """In 10 s the lock was held for 2 s by 200 updates: 10 ms each, so that 100 a second fill it."""
    fields = admitted(Admitted(2, 200, 20.0, spent(1.0, 1.0, transitions=400, lock_share=0.2)))
    assert (fields["lock_ms"], fields["lock_ms_per_transition"]) == (10.0, 5.0)
    assert fields["ceiling_per_s"] == 100.0


def test_a_lock_that_was_never_seen_held_says_nothing_of_a_ceiling() -> None:
    fields = [admitted(Admitted(1, 200, 20.0, spent(1.0)))]
    assert fields[0]["ceiling_per_s"] is None
    assert columns("tiny", {"at most": number("ceiling_per_s")}, fields).splitlines() == [
        "| tiny    | 1 server |",
        "| ------- | -------- |",
        "| at most | –        |",
    ]


def test_a_return_costs_what_waiting_adds_to_servers_to_which_nobody_comes() -> None:
    """Two servers use 0.04 and 0.06 of a core, 0.01 each by themselves: 0.08 for 20 returns a second, 4 ms
    each. At 0.7 of a core, 0.01 of it its own, one carries 172.5 returns a second, which are 525 s apart.
    """
    found = Rested(
        replicas=2,
        waiting_each=(100, 100),
        alone=spent(0.1, 0.1),
        grown_bytes_each=(4_000_000, 5_000_000),
        returns=200,
        failures=0,
        connections_each=3.0,
        spent=spent(0.4, 0.6),
    )
    fields = rested(found)
    assert fields["server_cpu_ms_per_return"] == pytest.approx(4.0)
    assert fields["carries_returns_per_s"] == pytest.approx(172.5)
    assert fields["carries_workers"] == pytest.approx(172.5 * 525, abs=1)
    assert fields["server_cpu_per_1000_workers"] == pytest.approx(1000 * 0.004 / 525, rel=1e-2)
    assert fields["bytes_per_worker_each"] == [40_000, 50_000]


def test_an_upload_costs_by_the_update_and_by_the_megabyte() -> None:
    fields = uploaded(Uploaded(2, Plan(25, 4, 5), [2.0] * 5, 5.0, spent(2.0, 2.0)))
    assert fields["server_cpu_ms"] == pytest.approx(200)  # 4 s for 20 updates
    assert fields["server_cpu_ms_per_mb"] == pytest.approx(8)  # … of 25 MB
    assert (fields["mb_per_s"], fields["carries_mb_per_s"]) == (pytest.approx(50), pytest.approx(87.5))
    assert fields["aggregation_mb_per_s"] == pytest.approx(100)


async def test_the_lock_is_seen_held_for_as_long_as_it_is_held(
    postgres: Postgres, s3: S3Server, new_database: Callable[[], str]
) -> None:
    url = new_database()
    observer = Observer(url.rpartition("/")[2], [os.getpid()], StoreProcesses(postgres, s3))
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("CREATE TABLE numbers (number integer)")
        async with asyncio.timeout(60), observer.watching():
            before = await observer.reading()
            for number_ in range(20):
                async with connection.transaction():
                    await connection.execute("SELECT pg_advisory_xact_lock(1)")
                    await connection.execute("INSERT INTO numbers VALUES ($1)", number_)
                    await connection.execute("SELECT pg_sleep(0.03)")
                await connection.execute("SELECT pg_sleep(0.06)")
            await connection.execute("SELECT count(*) FROM generate_series(1, 2000000)")
            seen = (await observer.reading()).since(before)
    finally:
        await connection.close()
    assert seen.seconds * seen.lock_share == pytest.approx(20 * 0.03, rel=0.4)
    assert 20 <= seen.transitions <= 25  # the database's own housekeeping may have written, too
    assert seen.postgres_cpu_s > 0.1
