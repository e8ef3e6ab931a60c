# SPDX-License-Identifier: Apache-2.0
"""A small federation of real workers behind a mistreating network, and the laws of what came of it."""

import asyncio
import random
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch

from fed_sophia.new_run import RunRequest, begin
from protocol.messages import Outcome, Receipt, RoundStatus, RunStatus, RunSummary
from tests.system.cohort import a_cohort
from tests.system.conftest import ServerProcess
from tests.system.network.mistreating_proxy import MistreatingProxy
from worker.agent import serve
from worker.events import AgentEvent, Sent
from worker.patience import Pauses
from worker.training import Trainer

WORKERS = 4

ENROL = "POST /v1/workers"
ASSIGNMENT = "GET /v1/workers/*/assignment"
TENSORS = "GET /v1/runs/*/tensors/*"
DECLARE = "POST /v1/assignments/*/update"
UPLOAD = "PATCH /v1/uploads/*"


@dataclass(frozen=True)
class Ended:
    """A run that has ended, and what its workers said."""

    run: RunSummary
    events: Sequence[AgentEvent]

    @property
    def tensors(self) -> dict[str, str]:
        """The digests of the final state."""
        return dict(self.run.tensors)


def short_pauses(name: str) -> Pauses:
    """A worker's pauses, a hundred times shorter, drawn from its own seed."""
    return Pauses(sleep=lambda wait_s: asyncio.sleep(wait_s / 100), jitter=random.Random(name).random)


async def federate(
    server: ServerProcess, url: str, directory: Path, algorithm: str = "fed-sophia-shared", rounds: int = 5
) -> Ended:
    """Hold a run with four workers whose server is at `url`, each on a disk of its own in `directory`."""
    torch.set_num_threads(1)
    events: list[AgentEvent] = []
    token = await server.join_token(uses=WORKERS)
    request = RunRequest(
        task="digits",
        name="network",
        rounds=rounds,
        policies={"cohort_size": WORKERS, "quorum": WORKERS},
        algorithm=algorithm,
        local_steps=5,
        seed=3,
    )
    async with server.operator() as operator, asyncio.TaskGroup() as workers:
        run_id = (await begin(operator, request)).run_id
        for options, task, mine in a_cohort(url, token, directory, WORKERS, rounds):
            trainer = Trainer(task, mine, torch.device("cpu"))
            pauses = short_pauses(options.name)
            workers.create_task(serve(options, "digits", trainer, events.append, pauses))
        run = await server.run_ended(run_id)
    assert run.status is RunStatus.FINISHED, run.reason
    assert run.round == rounds, "no round was lost or repeated"
    return Ended(run, events)


def receipts_given(proxy: MistreatingProxy) -> list[Receipt]:
    """Every receipt that the server gave, whether anybody heard it or not."""
    return [
        Receipt.model_validate_json(bytes(exchange.answer))
        for exchange in proxy.on(UPLOAD) + proxy.on(DECLARE)
        if exchange.status == 200 and exchange.answered
    ]


async def what_became_of(server: ServerProcess, receipts: Sequence[Receipt]) -> dict[str, Receipt]:
    """Ask the server for every one of these receipts again: {assignment: receipt}.

    The law: it is there, it is of the same update, and that is counted in a version, or not for a reason.
    """
    key = (server.data_dir / "operator.key").read_text().strip()
    found: dict[str, Receipt] = {}
    async with httpx.AsyncClient(
        base_url=server.url, headers={"Authorization": f"Bearer {key}"}, timeout=30
    ) as client:
        for given in receipts:
            answer = await client.get(f"/v1/assignments/{given.assignment_id}/update")
            assert answer.status_code == 200, answer.text
            now = Receipt.model_validate_json(answer.content)
            assert (now.assignment_id, now.digest) == (given.assignment_id, given.digest)
            counted = now.outcome is Outcome.COUNTED and now.version is not None and now.reason is None
            left_out = now.outcome is Outcome.NOT_COUNTED and now.version is None and bool(now.reason)
            assert counted or left_out, now
            found[now.assignment_id] = now
    return found


async def everything_counts_once(server: ServerProcess, proxy: MistreatingProxy, ended: Ended) -> None:
    """The law of a run that waits for all of its workers: each update is in one version, once."""
    final = await what_became_of(server, receipts_given(proxy))
    sizes: dict[int | None, Counter[str]] = defaultdict(Counter)
    for event in ended.events:
        if isinstance(event, Sent):
            version = final[event.receipt.assignment_id].version
            sizes[version][event.receipt.assignment_id] += event.size_bytes
    async with server.operator() as operator:
        rounds = await operator.rounds(ended.run.run_id)
        versions = await operator.versions(ended.run.run_id)
    assert [round_.round for round_ in rounds] == list(range(1, len(rounds) + 1))
    assert [version.version for version in versions] == list(range(len(rounds) + 1))
    for round_ in rounds:
        assert round_.status is RoundStatus.COMMITTED
        assert (round_.invited, round_.admitted, round_.declined) == (WORKERS, WORKERS, 0)
        assert len(sizes[round_.version]) == WORKERS
        assert round_.bytes_up == sizes[round_.version].total(), "the bytes of each update, once"
    assert updates_on_record(server, ended.run.run_id) == dict.fromkeys(final, 1)
    assert len(final) == WORKERS * len(rounds)


def updates_on_record(server: ServerProcess, run_id: str) -> dict[str, int]:
    """{assignment: how many updates the server's database holds for it} of one run."""
    path = server.data_dir / "records.sqlite"
    query = "SELECT assignment_id, COUNT(*) FROM updates WHERE run_id = ? GROUP BY assignment_id"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return dict(database.execute(query, [run_id]))
