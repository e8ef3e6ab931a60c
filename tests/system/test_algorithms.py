# SPDX-License-Identifier: Apache-2.0
"""The algorithms of the table over the real wire: a restart in the middle of a round changes no bit.

Server and workers share this process; the workers are whole agents that speak to the server through
httpx's ASGI transport and keep their state on disk.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import httpx
import pytest
import torch

from protocol.algorithms import ALGORITHMS, algorithm_named
from protocol.codec import MEDIA_TYPE, Bundle, decode_message, digest_of
from protocol.messages import RunStatus, RunSummary
from ps_service.background import background
from ps_service.settings import Settings
from ps_service.storage import Stores, key_records
from ps_service.storage.files import FileBlobs
from ps_service.storage.records import open_records
from tests.ps_service.conftest import ManualClock, ParameterServer, a_message, add_operator
from worker.agent import serve
from worker.options import WorkerOptions
from worker.patience import Pauses
from worker.tasks import load_task
from worker.tasks.partition import parse_partition
from worker.training import Trainer, initial_parameters

WORKERS = 3
ROUNDS = 3
CPU = torch.device("cpu")
NUMBERS = {"done": {"richardson_rate": 0.2}}
"""Those that the defaults, chosen for larger models and more rounds, would leave almost where they were."""
SPARED = ("fed-sophia-shared", "fed-sophia", "fedavg")
"""Those whose runs are broken off in many more ways elsewhere in this folder."""


@asynccontextmanager
async def a_server(directory: Path) -> AsyncIterator[ParameterServer]:
    """A server on these files for as long as this is open, with its background work."""
    records = await open_records(directory / "records.sqlite")
    try:
        server = ParameterServer(
            directory, Stores(records, FileBlobs(directory)), ManualClock(), Settings(_env_file=None)
        )
        async with records.write() as connection:
            if not await key_records.list_operator_keys(connection):
                await add_operator(connection)
        async with background(server.service):
            yield server
        await server.service.uploads.close()
    finally:
        await records.close()


@cache
def trainers() -> list[Trainer]:
    """One for each worker, with its part of the digits; they hold nothing of what they have trained."""
    task = load_task("digits")
    examples = task.training_data()
    parts = parse_partition("iid").indices_of_each(examples.targets.numpy(), range(WORKERS), WORKERS, 0)
    return [Trainer(task, examples.batch(rows), CPU) for rows in parts]


@dataclass(frozen=True)
class Federation:
    """A directory for a server and its workers, and a run of this algorithm."""

    directory: Path
    algorithm: str
    hyperparameters: Mapping[str, float] = field(default_factory=dict)

    async def begin(self, server: ParameterServer) -> str:
        """Store the first parameters and create the run; give its id."""
        params = initial_parameters(load_task("digits"), 0)
        message = a_message("state", {"params": params})
        digest = digest_of([message])
        answer = await server.operator.put(
            f"/v1/tensors/{digest}", content=message, headers={"Content-Type": MEDIA_TYPE}
        )
        assert answer.status_code == 201, answer.text
        run = await server.a_run(
            algorithm=self.algorithm,
            hyperparameters=NUMBERS.get(self.algorithm, {}) | dict(self.hyperparameters),
            rounds=ROUNDS,
            cohort_size=WORKERS,
            quorum=WORKERS,
            model={name: values.shape for name, values in params.items()},
            params_digest=digest,
        )
        return run.run_id

    async def train(self, server: ParameterServer, index: int, assignments: int) -> None:
        """One life of a worker: it starts, does so many assignments and ends."""
        options = WorkerOptions(
            server_url="http://server",
            join_token=await server.join_token(),
            name=f"w{index}",
            state_dir=self.directory / f"w{index}",
            task="digits",
            max_assignments=assignments,
        )
        pauses = Pauses(sleep=lambda _: asyncio.sleep(0.01), jitter=lambda: 0.5)
        transport = httpx.ASGITransport(server.app)
        await serve(options, "digits", trainers()[index], lambda _: None, pauses, transport=transport)

    async def train_all(self, server: ParameterServer, *assignments: int) -> None:
        """A life of each worker at the same time, with so many assignments each; none for 0."""
        async with asyncio.timeout(60), asyncio.TaskGroup() as workers:
            for index, count in enumerate(assignments):
                if count:
                    workers.create_task(self.train(server, index, count))

    async def undisturbed(self) -> tuple[RunSummary, Bundle]:
        """The run as it ended, and its last parameters."""
        async with a_server(self.directory) as server:
            run_id = await self.begin(server)
            await self.train_all(server, ROUNDS, ROUNDS, ROUNDS)
            return await ended(server, run_id)

    async def restarted(self) -> tuple[RunSummary, Bundle]:
        """The same, where everything ends and starts again when one of three has answered in round 2."""
        async with a_server(self.directory) as server:
            run_id = await self.begin(server)
            await self.train_all(server, 1, 1, 1)
            await self.train_all(server, 1, 0, 0)
            second = (await server.rounds(run_id))[1]
            assert (second["status"], second["admitted"]) == ("collecting", 1)
        async with a_server(self.directory) as server:
            await self.train_all(server, 1, 2, 2)
            return await ended(server, run_id)


async def ended(server: ParameterServer, run_id: str) -> tuple[RunSummary, Bundle]:
    async with asyncio.timeout(60):
        while not (run := await server.show(run_id)).status.ended:
            await asyncio.sleep(0.01)
    message = await server.operator.get(f"/v1/runs/{run_id}/tensors/{run.tensors['params']}")
    return run, decode_message(message.content)["params"]


@pytest.mark.parametrize(
    "algorithm", [*(name for name in ALGORITHMS if name not in SPARED), "local-adamw+fedavgm"]
)
async def test_a_run_that_is_restarted_in_the_middle_of_a_round_ends_as_if_it_had_not_been(
    tmp_path_factory: pytest.TempPathFactory, algorithm: str
) -> None:
    torch.set_num_threads(1)
    expected, params = await Federation(tmp_path_factory.mktemp("undisturbed"), algorithm).undisturbed()
    run, _ = await Federation(tmp_path_factory.mktemp("restarted"), algorithm).restarted()

    assert (run.status, run.version, run.round) == (RunStatus.FINISHED, ROUNDS, ROUNDS)
    assert set(run.tensors) == set(algorithm_named(algorithm).global_state)
    assert run.tensors == expected.tensors
    evaluator = Trainer(load_task("digits"), None, CPU)
    before, after = (
        evaluator.evaluate({"params": bundle}).metrics["test_accuracy"]
        for bundle in (initial_parameters(load_task("digits"), 0), params)
    )
    assert after > before + 0.15


async def test_two_algorithms_that_joined_are_a_third_give_its_versions_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    torch.set_num_threads(1)
    numbers = {"learning_rate": 0.125, "server_learning_rate": 0.0625}
    runs = [
        await Federation(tmp_path_factory.mktemp("run"), name, numbers | own).undisturbed()
        for name, own in (
            ("fedadam", {"momentum_decay": 0.5}),
            ("fedavg+fedadam", {"server_momentum_decay": 0.5}),
        )
    ]
    assert runs[0][0].version == ROUNDS
    assert runs[0][0].tensors == runs[1][0].tensors
