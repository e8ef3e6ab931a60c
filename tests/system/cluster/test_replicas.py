# SPDX-License-Identifier: Apache-2.0
"""Servers on the same stores are one: whichever is asked, and whichever dies."""

import asyncio
import random
import signal
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest

from protocol.messages import RoundSummary
from tests.postgres import a_postgres
from tests.system.cluster.cluster import Cluster, HeldServer, StartsCluster
from tests.system.cluster.federation import require_laws, together, undisturbed
from tests.system.conftest import ServerProcess


async def test_three_servers_in_the_place_of_one_change_no_bit(
    expected: dict[str, str], start_cluster: StartsCluster, tmp_path: Path
) -> None:
    cluster = await start_cluster(3)
    ended, receipts = await together(cluster, tmp_path / "together", undisturbed)
    await require_laws(cluster, ended, receipts)
    assert ended.tensors == expected


class Disturbance:
    """What happens to a cluster again and again while it works."""

    pause_s = (0.2, 0.8)

    def __init__(self, cluster: Cluster, seed: int = 7) -> None:
        self.cluster = cluster
        self.chance = random.Random(seed)
        self.happened = 0

    async def go_on(self, _run_id: str, over: asyncio.Event) -> None:
        while not over.is_set():
            await asyncio.sleep(self.chance.uniform(*self.pause_s))
            await self.happen()
            self.happened += 1

    async def happen(self) -> None:
        raise NotImplementedError


class Kills(Disturbance):
    """A server dies, and is started again."""

    async def happen(self) -> None:
        victim = self.chance.choice(self.cluster.servers)
        await victim.kill()
        await victim.start()


class CutsTheDatabase(Disturbance):
    """Every connection to the database is cut at once."""

    pause_s = (1.0, 2.5)

    async def happen(self) -> None:
        connection = await asyncpg.connect(self.cluster.database_url)
        try:
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        finally:
            await connection.close()


class CutsTheStore(Disturbance):
    """The object store dies with all that is under way, and is there again some seconds later."""

    pause_s = (2.0, 4.0)

    async def happen(self) -> None:
        await asyncio.to_thread(self.cluster.s3.kill)
        await asyncio.sleep(self.chance.uniform(0, 1))
        await asyncio.to_thread(self.cluster.s3.start)


@pytest.mark.parametrize(
    ("kind", "count", "presigned"),
    [(Kills, 3, False), (Kills, 3, True), (CutsTheDatabase, 3, False), (CutsTheStore, 2, True)],
)
async def test_what_happens_to_servers_and_stores_loses_nothing_and_changes_no_bit(
    expected: dict[str, str],
    start_cluster: StartsCluster,
    tmp_path: Path,
    kind: type[Disturbance],
    count: int,
    presigned: bool,
) -> None:
    cluster = await start_cluster(count)
    disturbance = kind(cluster)
    folder = tmp_path / "together"
    ended, receipts = await together(cluster, folder, disturbance.go_on, presigned=presigned)
    assert disturbance.happened >= 2
    await cluster.start_anew()
    await require_laws(cluster, ended, receipts)
    assert ended.tensors == expected


async def test_a_server_that_stands_still_beyond_its_lease_writes_nothing_down_when_it_wakes(
    expected: dict[str, str], start_cluster: StartsCluster, tmp_path: Path
) -> None:
    cluster = await start_cluster(2, kind=HeldServer)
    stood_still = None

    async def stand_still(run_id: str, _over: asyncio.Event) -> None:
        nonlocal stood_still
        await until_round(cluster, run_id, 1)
        for each in cluster.servers:
            (each.data_dir / "hold").touch()
        while stood_still is None:
            held = [each for each in cluster.servers if (each.data_dir / "held").exists()]
            stood_still = held[0] if held else None
            await asyncio.sleep(0.01)
        stood_still.send(signal.SIGSTOP)
        for each in cluster.servers:
            (each.data_dir / "hold").unlink()
        cluster.balancer.ports.remove(stood_still.port)  # as a probe would find out
        (number,) = [r.round for r in await open_rounds(cluster, run_id, stood_still)]
        await until_round(cluster, run_id, number + 1, stood_still)
        stood_still.send(signal.SIGCONT)
        cluster.balancer.ports.append(stood_still.port)

    ended, receipts = await together(cluster, tmp_path / "together", stand_still)
    assert stood_still is not None
    await require_laws(cluster, ended, receipts)
    assert ended.tensors == expected
    log = (stood_still.data_dir.parent / "server.log").read_text()
    assert "has taken effect" in log or "was lost" in log


async def test_a_database_that_is_started_elsewhere_in_the_middle_of_a_round_goes_on(
    expected: dict[str, str],
    start_cluster: StartsCluster,
    tmp_path: Path,
    require_part: Callable[[bool, str], None],
) -> None:
    with a_postgres(require_part) as postgres:
        cluster = await start_cluster(2, database_url=postgres.create("moving"))

        async def move(run_id: str, _over: asyncio.Event) -> None:
            await until_round(cluster, run_id, 3)
            postgres.stop()
            await asyncio.sleep(2)
            postgres.move_to(postgres.directory.with_name("elsewhere"))
            postgres.start()

        ended, receipts = await together(cluster, tmp_path / "together", move, takes_s=0.3)
        await require_laws(cluster, ended, receipts)
        assert ended.tensors == expected
        for each in cluster.servers:
            assert await each.end(signal.SIGTERM) == 0


DRAIN_S = 3.0


async def test_a_rolling_restart_in_the_middle_of_rounds_loses_nothing_and_holds_nobody_up(
    expected: dict[str, str], start_cluster: StartsCluster, tmp_path: Path
) -> None:
    cluster = await start_cluster(3, FED_SOPHIA_DRAIN_S=str(DRAIN_S))
    ended_with = []

    async def restart_each(run_id: str, over: asyncio.Event) -> None:
        await until_round(cluster, run_id, 1)
        for each in cluster.servers:
            assert not over.is_set()
            cluster.balancer.ports.remove(each.port)
            ended_with.append(await each.end(signal.SIGTERM))
            await each.start()
            cluster.balancer.ports.append(each.port)

    ended, receipts = await together(cluster, tmp_path / "together", restart_each, takes_s=2.5)
    assert ended_with == [0, 0, 0]
    await require_laws(cluster, ended, receipts)
    assert ended.tensors == expected
    async with cluster.operator(cluster.servers[0]) as operator:
        lengths_s = [(each.ended_ms - each.opened_ms) / 1000 for each in await operator.rounds(ended.run_id)]
    assert max(lengths_s) < sorted(lengths_s)[len(lengths_s) // 2] + 2 * DRAIN_S


async def open_rounds(cluster: Cluster, run_id: str, but: ServerProcess) -> list[RoundSummary]:
    other = next(each for each in cluster.servers if each is not but)
    async with cluster.operator(other) as operator:
        return [each for each in await operator.rounds(run_id) if not each.status.ended]


async def until_round(cluster: Cluster, run_id: str, number: int, but: ServerProcess | None = None) -> None:
    """Come back once a round of this number is open."""
    other = next(each for each in cluster.servers if each is not but)
    async with cluster.operator(other) as operator, asyncio.timeout(60):
        while (await operator.run(run_id)).round < number:
            await asyncio.sleep(0.02)
