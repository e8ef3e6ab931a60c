# SPDX-License-Identifier: Apache-2.0
"""`kill -9` of the server in the middle of a round: the run goes on and ends as if nothing had happened."""

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from fed_sophia.new_run import RunRequest, begin
from protocol.codec import Bundle
from protocol.messages import Assignment, RunStatus
from tests.system.cohort import a_cohort
from tests.system.conftest import ServerProcess
from worker.agent import serve
from worker.local_state import Kept
from worker.training import Trained, Trainer

WORKERS = 4
ROUNDS = 6
KILLED_IN = 3


class Gate:
    """Holds workers back in one round, so that a test can act while the round is half full."""

    def __init__(self, loop: asyncio.AbstractEventLoop, held: set[int]) -> None:
        self._loop = loop
        self._held = held
        self.opened = asyncio.Event()

    def pass_through(self, assignment: Assignment) -> None:
        """Called in a training thread: waits there if this worker is to be held back."""
        if assignment.round == KILLED_IN and assignment.slot in self._held:
            asyncio.run_coroutine_threadsafe(self.opened.wait(), self._loop).result(timeout=60)


class GatedTrainer:
    """Real training, behind a gate."""

    def __init__(self, trainer: Trainer, gate: Gate) -> None:
        self._trainer = trainer
        self._gate = gate

    def train(
        self,
        assignment: Assignment,
        state: Mapping[str, Bundle],
        kept: Kept | None,
        stop: threading.Event | None = None,
    ) -> Trained:
        self._gate.pass_through(assignment)
        return self._trainer.train(assignment, state, kept, stop)

    def evaluate(
        self, state: Mapping[str, Bundle], stop: threading.Event | None = None
    ) -> tuple[int, dict[str, float]]:
        return self._trainer.evaluate(state, stop)


async def final_digests(server: ServerProcess, tmp_path: Path, algorithm: str, kills: int) -> dict[str, str]:
    """Run a small federation; kill the server so many times while a round is half full; give the end."""
    torch.set_num_threads(1)
    gate = Gate(asyncio.get_running_loop(), held={1, 3})
    token = await server.join_token(uses=WORKERS)
    async with server.operator() as operator, asyncio.TaskGroup() as workers:
        request = RunRequest(
            task="digits",
            name="kill",
            rounds=ROUNDS,
            policies={"cohort_size": WORKERS, "quorum": WORKERS},
            algorithm=algorithm,
            local_steps=5,
            seed=3,
        )
        run_id = (await begin(operator, request)).run_id
        # started in another order than that of their names: the result must not depend on it
        cohort = list(a_cohort(server.url, token, tmp_path, WORKERS, ROUNDS))
        for index in (2, 0, 3, 1):
            options, task, mine = cohort[index]
            trainer = GatedTrainer(Trainer(task, mine, torch.device("cpu")), gate)
            workers.create_task(serve(options, "digits", trainer, lambda _event: None))
        for _ in range(kills):
            async with asyncio.timeout(60):
                while not [r for r in await operator.rounds(run_id, KILLED_IN - 1) if r.admitted == 2]:
                    await asyncio.sleep(0.02)
            await server.kill()
            await server.start()
        gate.opened.set()
        ended = await server.run_ended(run_id)
    assert ended.status is RunStatus.FINISHED
    assert ended.round == ROUNDS, "no round was lost or repeated"
    return dict(ended.tensors)


@pytest.mark.parametrize("algorithm", ["fed-sophia-shared", "fed-sophia"])
async def test_a_server_killed_in_the_middle_of_a_round_ends_the_run_with_the_same_digest(
    server: ServerProcess, tmp_path: Path, algorithm: str
) -> None:
    undisturbed = await final_digests(server, tmp_path / "undisturbed", algorithm, kills=0)
    killed = await final_digests(server, tmp_path / "killed", algorithm, kills=2)
    assert killed == undisturbed
