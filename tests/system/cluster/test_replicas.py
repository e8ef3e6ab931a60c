# SPDX-License-Identifier: Apache-2.0
"""Servers on the same stores are one: whichever is asked, and whichever dies."""

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import torch

from fed_sophia.new_run import RunRequest, begin
from fed_sophia.operator_client import OperatorClient
from protocol.messages import Outcome, Receipt, RoundSummary, RunStatus, RunSummary
from tests.postgres import a_postgres
from tests.system.cluster.conftest import Cluster, HeldServer, StartsCluster
from tests.system.cohort import a_cohort
from tests.system.conftest import ServerProcess
from worker.agent import serve
from worker.events import AgentEvent, Sent
from worker.training import Trained, Trainer

WORKERS = 8
ROUNDS = 10
Disturbs = Callable[[str, asyncio.Event], Awaitable[None]]
"""(run, set once it has ended): what happens meanwhile."""


class Unhurried(Trainer):
    """Takes its time, so that rounds are long enough for what is to happen in them."""

    takes_s = 0.0

    def train(self, *arguments: Any, **named: Any) -> Trained:
        time.sleep(self.takes_s)
        return super().train(*arguments, **named)


async def federation(
    url: str,
    operator: OperatorClient,
    token: str,
    folder: Path,
    disturb: Disturbs,
    run_ended: Callable[[str], Awaitable[RunSummary]],
    takes_s: float = 0.0,
) -> tuple[RunSummary, list[Receipt]]:
    """Hold a run with real training; give its end, and the receipts that the workers were given."""
    torch.set_num_threads(1)
    receipts: list[Receipt] = []

    def report(event: AgentEvent) -> None:
        if isinstance(event, Sent):
            receipts.append(event.receipt)

    request = RunRequest(
        task="digits",
        name="replicas",
        rounds=ROUNDS,
        policies={"cohort_size": WORKERS, "quorum": WORKERS},
        algorithm="fed-sophia-shared",
        local_steps=3,
        seed=3,
    )
    run_id = (await begin(operator, request)).run_id
    async with asyncio.TaskGroup() as group:
        for options, task, mine in a_cohort(url, token, folder, WORKERS, ROUNDS):
            trainer = Unhurried(task, mine, torch.device("cpu"))
            trainer.takes_s = takes_s
            group.create_task(serve(options, "digits", trainer, report))
        over = asyncio.Event()
        group.create_task(disturb(run_id, over))
        ended = await run_ended(run_id)
        over.set()
    return ended, receipts


async def undisturbed(_run_id: str, _over: asyncio.Event) -> None:
    """Nothing happens."""


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The digests with which the same run ends on one server with SQLite and files."""
    folder = tmp_path_factory.mktemp("alone")

    async def alone() -> dict[str, str]:
        server = ServerProcess(folder / "server")
        server.data_dir.mkdir()
        await server.start()
        try:
            async with server.operator() as operator:
                token = await server.join_token(uses=WORKERS)
                ended, _ = await federation(
                    server.url, operator, token, folder, undisturbed, server.run_ended
                )
        finally:
            await server.end(signal.SIGKILL)
        return dict(ended.tensors)

    return asyncio.run(alone())


async def together(
    cluster: Cluster, folder: Path, disturb: Disturbs, takes_s: float = 0.0
) -> tuple[RunSummary, list[Receipt]]:
    async with cluster.operator() as operator:
        token = await cluster.join_token(WORKERS)
        return await federation(cluster.url, operator, token, folder, disturb, cluster.run_ended, takes_s)


async def require_laws(cluster: Cluster, ended: RunSummary, receipts: list[Receipt]) -> None:
    """No round lost or repeated, and every receipt stands for one update that was counted."""
    assert (ended.status, ended.round) == (RunStatus.FINISHED, ROUNDS)
    async with cluster.operator(cluster.servers[0]) as operator:
        rounds = await operator.rounds(ended.run_id)
        assert [(each.round, each.version, each.admitted) for each in rounds] == [
            (number, number, WORKERS) for number in range(1, ROUNDS + 1)
        ]
    digests: dict[str, set[str]] = {}
    for receipt in receipts:
        digests.setdefault(receipt.assignment_id, set()).add(receipt.digest)
    assert len(digests) == WORKERS * ROUNDS
    for assignment_id, of_assignment in digests.items():
        stands = await cluster.receipt(assignment_id)
        assert (of_assignment, stands.outcome) == ({stands.digest}, Outcome.COUNTED)


@pytest.mark.parametrize("count", [1, 3])
async def test_no_number_of_servers_changes_a_bit(
    expected: dict[str, str], start_cluster: StartsCluster, tmp_path: Path, count: int
) -> None:
    cluster = await start_cluster(count)
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


@pytest.mark.parametrize("kind", [Kills, CutsTheDatabase, CutsTheStore])
async def test_what_happens_to_servers_and_stores_loses_nothing_and_changes_no_bit(
    expected: dict[str, str], start_cluster: StartsCluster, tmp_path: Path, kind: type[Disturbance]
) -> None:
    cluster = await start_cluster(3)
    disturbance = kind(cluster)
    ended, receipts = await together(cluster, tmp_path / "together", disturbance.go_on)
    assert disturbance.happened >= 2
    await cluster.all_there()
    await require_laws(cluster, ended, receipts)
    assert ended.tensors == expected


async def test_a_server_that_stands_still_beyond_its_lease_writes_nothing_down_when_it_wakes(
    expected: dict[str, str], start_cluster: StartsCluster, tmp_path: Path
) -> None:
    cluster = await start_cluster(2, kind=HeldServer)
    stood_still = None

    async def stand_still(run_id: str, _over: asyncio.Event) -> None:
        nonlocal stood_still
        await until_round(cluster, run_id, 2)
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
        await until_round(cluster, run_id, 2)
        for each in cluster.servers:
            assert not over.is_set()
            cluster.balancer.ports.remove(each.port)
            ended_with.append(await each.end(signal.SIGTERM))
            await each.start()
            cluster.balancer.ports.append(each.port)

    ended, receipts = await together(cluster, tmp_path / "together", restart_each, takes_s=1.0)
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
