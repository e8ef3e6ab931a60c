# SPDX-License-Identifier: Apache-2.0
"""A run with real training by many workers, and what must hold of it whatever happens meanwhile."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from fed_sophia.new_run import RunRequest, begin
from fed_sophia.operator_client import OperatorClient
from protocol.messages import Assignment, Outcome, Receipt, RunStatus, RunSummary
from tests.system.cluster.cluster import Cluster
from tests.system.cohort import a_cohort
from worker.agent import serve
from worker.events import AgentEvent, Report, Sent
from worker.training import Trained, Trainer

WORKERS = 32
ROUNDS = 3
Disturbs = Callable[[str, asyncio.Event], Awaitable[None]]
"""(run, set once it has ended): what happens meanwhile."""
First = Callable[[Assignment], None]
"""What a worker does before it trains, in a thread of its own."""


async def undisturbed(_run_id: str, _over: asyncio.Event) -> None:
    """Nothing happens."""


def wait(takes_s: float) -> First:
    """Take time, so that rounds are long enough for what is to happen in them."""
    return lambda _assignment: time.sleep(takes_s)


class Hindered(Trainer):
    """Does something else first."""

    first: First

    def train(self, assignment: Assignment, *arguments: Any, **named: Any) -> Trained:
        self.first(assignment)
        return super().train(assignment, *arguments, **named)


async def begin_run(operator: OperatorClient, **policies: object) -> str:
    request = RunRequest(
        task="digits",
        name="replicas",
        rounds=ROUNDS,
        policies={"cohort_size": WORKERS, "quorum": WORKERS, **policies},
        algorithm="fed-sophia-shared",
        local_steps=3,
        seed=3,
    )
    return (await begin(operator, request)).run_id


async def all_work(
    url: str, token: str, folder: Path, first: First, report: Report, assignments: int | None = ROUNDS
) -> None:
    """Be all workers, until each has brought so many assignments to their end."""
    torch.set_num_threads(1)
    with ThreadPoolExecutor(WORKERS, "training") as threads:
        async with asyncio.TaskGroup() as group:
            for options, task, mine in a_cohort(url, token, folder, WORKERS, assignments):
                trainer = Hindered(task, mine, torch.device("cpu"))
                trainer.first = first
                group.create_task(serve(options, "digits", trainer, report, executor=threads))


async def federation(
    url: str,
    operator: OperatorClient,
    token: str,
    folder: Path,
    disturb: Disturbs,
    run_ended: Callable[[str], Awaitable[RunSummary]],
    takes_s: float = 0.0,
    **policies: object,
) -> tuple[RunSummary, list[Receipt]]:
    """Hold a run; give its end, and the receipts that the workers were given."""
    receipts: list[Receipt] = []

    def report(event: AgentEvent) -> None:
        if isinstance(event, Sent):
            receipts.append(event.receipt)

    run_id = await begin_run(operator, **policies)
    over = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(all_work(url, token, folder, wait(takes_s), report))
        group.create_task(disturb(run_id, over))
        ended = await run_ended(run_id)
        over.set()
    return ended, receipts


async def together(
    cluster: Cluster, folder: Path, disturb: Disturbs, takes_s: float = 0.0, **policies: object
) -> tuple[RunSummary, list[Receipt]]:
    """Hold a run on servers that share their stores."""
    async with cluster.operator() as operator:
        token = await cluster.join_token(WORKERS)
        return await federation(
            cluster.url, operator, token, folder, disturb, cluster.run_ended, takes_s, **policies
        )


async def require_rounds(cluster: Cluster, ended: RunSummary) -> None:
    """None is lost, none repeated."""
    assert (ended.status, ended.round) == (RunStatus.FINISHED, ROUNDS)
    async with cluster.operator(cluster.servers[0]) as operator:
        rounds = await operator.rounds(ended.run_id)
        assert [(each.round, each.version, each.admitted) for each in rounds] == [
            (number, number, WORKERS) for number in range(1, ROUNDS + 1)
        ]


async def require_laws(cluster: Cluster, ended: RunSummary, receipts: list[Receipt]) -> None:
    """No round lost or repeated, and every receipt stands for one update that was counted."""
    await require_rounds(cluster, ended)
    digests: dict[str, set[str]] = {}
    for receipt in receipts:
        digests.setdefault(receipt.assignment_id, set()).add(receipt.digest)
    assert len(digests) == WORKERS * ROUNDS
    for assignment_id, of_assignment in digests.items():
        stands = await cluster.receipt(assignment_id)
        assert (of_assignment, stands.outcome) == ({stands.digest}, Outcome.COUNTED)
