# SPDX-License-Identifier: Apache-2.0
"""Servers on the same stores are one: whichever is asked, and whichever dies."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from fed_sophia.new_run import RunRequest, begin
from fed_sophia.operator_client import OperatorClient
from protocol.errors import FedSophiaError
from protocol.messages import Outcome, Receipt, RunStatus, RunSummary
from tests.system.cluster.conftest import Cluster, StartsCluster
from tests.system.conftest import ServerProcess
from worker.agent import serve
from worker.events import AgentEvent, Sent
from worker.options import WorkerOptions
from worker.tasks import load_task
from worker.tasks.partition import parse_partition
from worker.training import Trainer

WORKERS = 8
ROUNDS = 12
Disturbs = Callable[[str], Awaitable[None]]


async def federation(
    url: str,
    operator: OperatorClient,
    token: str,
    folder: Path,
    disturb: Disturbs,
    run_ended: Callable[[str], Awaitable[RunSummary]],
) -> tuple[RunSummary, list[Receipt]]:
    """Hold a run with real training; give its end, and the receipts that the workers were given."""
    torch.set_num_threads(1)
    task = load_task("digits", None)
    examples = task.training_data()
    partition = parse_partition("shards:2")
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
        for index in range(WORKERS):
            mine = examples.batch(partition.indices(examples.targets.numpy(), index, WORKERS, 0))
            options = WorkerOptions(
                server_url=url,
                join_token=token,
                name=f"w{index}",
                state_dir=folder / f"w{index}",
                task="digits",
                max_assignments=ROUNDS,
            )
            trainer = Trainer(task, mine, torch.device("cpu"))
            group.create_task(serve(options, "digits", trainer, report))
        disturbing = group.create_task(disturb(run_id))
        ended = await run_ended(run_id)
        disturbing.cancel()
    return ended, receipts


async def undisturbed(_run_id: str) -> None:
    """Nothing happens."""


async def alone(server: ServerProcess, folder: Path) -> RunSummary:
    """The same on one server with SQLite and files."""
    async with server.operator() as operator:
        token = await server.join_token(uses=WORKERS)
        ended, _ = await federation(server.url, operator, token, folder, undisturbed, server.run_ended)
    return ended


async def together(cluster: Cluster, folder: Path, disturb: Disturbs) -> tuple[RunSummary, list[Receipt]]:
    async with cluster.operator() as operator:
        token = await cluster.join_token(WORKERS)
        return await federation(cluster.url, operator, token, folder, disturb, cluster.run_ended)


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
    server: ServerProcess, start_cluster: StartsCluster, tmp_path: Path, count: int
) -> None:
    expected = await alone(server, tmp_path / "alone")
    cluster = await start_cluster(count)
    ended, receipts = await together(cluster, tmp_path / "together", undisturbed)
    await require_laws(cluster, ended, receipts)
    assert ended.tensors == expected.tensors


async def test_servers_that_are_killed_at_random_lose_nothing_and_change_no_bit(
    server: ServerProcess, start_cluster: StartsCluster, tmp_path: Path
) -> None:
    expected = await alone(server, tmp_path / "alone")
    cluster = await start_cluster(3)
    kills = 0

    async def kill_now_and_then(_run_id: str) -> None:
        nonlocal kills
        chance = random.Random(7)
        while True:
            await asyncio.sleep(chance.uniform(0.2, 0.8))
            victim = chance.choice(cluster.servers)
            await victim.kill()
            kills += 1
            await victim.start()

    ended, receipts = await together(cluster, tmp_path / "together", kill_now_and_then)
    assert kills >= 3
    for each in cluster.servers:  # one may have been cut off while it was started again
        with suppress(FedSophiaError, AssertionError):
            await each.kill()
        await each.start()
    await require_laws(cluster, ended, receipts)
    assert ended.tensors == expected.tensors
