# SPDX-License-Identifier: Apache-2.0
"""A swarm that trains its workers stacked, over the real wire: the server sees what it sees of one by one."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from fed_sophia.new_run import RunRequest, begin
from protocol.codec import Bundle, decode_message
from protocol.errors import InvalidTask
from protocol.messages import JoinTokenRequest, Role, RunStatus, RunSummary
from tests.system.conftest import ServerProcess, running
from worker.events import AgentEvent, Failed, NotStacked, Refused, Training
from worker.options import SwarmOptions
from worker.swarm import run_swarm

WORKERS = 6
ROUNDS = 3
WITHIN_S = 120.0


async def a_run(server: ServerProcess, algorithm: str, task: str = "digits", rounds: int = ROUNDS) -> str:
    request = RunRequest(
        task=task,
        name="stacked",
        rounds=rounds,
        policies={"cohort_size": WORKERS, "quorum": WORKERS},
        algorithm=algorithm,
        local_steps=5,
        seed=3,
    )
    async with server.operator() as operator:
        return (await begin(operator, request)).run_id


async def a_swarm(
    server: ServerProcess, folder: Path, stack: int | None, *, task: str = "digits", rounds: int = ROUNDS
) -> list[AgentEvent]:
    """What the workers said, who have done so many assignments."""
    events: list[AgentEvent] = []
    async with server.operator() as operator:
        evaluator = await operator.create_token(JoinTokenRequest(role=Role.EVALUATOR))
    options = SwarmOptions(
        server_url=server.url,
        join_token=await server.join_token(uses=WORKERS),
        evaluator_token=evaluator.join_token,
        state_dir=folder,
        task=task,
        num_workers=WORKERS,
        partition="shards:2",
        device="cpu",
        threads=1,
        stack=stack,
        max_assignments=rounds,
    )
    async with asyncio.timeout(WITHIN_S):
        await run_swarm(options, events.append)
    return events


async def trained(
    server: ServerProcess, folder: Path, algorithm: str, stack: int
) -> tuple[RunSummary, Bundle]:
    run_id = await a_run(server, algorithm)
    await a_swarm(server, folder, stack)
    run = await server.run_ended(run_id)
    async with server.operator() as operator:
        return run, decode_message(await operator.tensors(run_id, run.tensors["params"]))["params"]


@pytest.mark.parametrize("algorithm", ["fed-sophia", "fed-sophia-shared"])
async def test_rounds_of_a_stacked_swarm_end_where_those_of_one_by_one_do(tmp_path: Path, algorithm: str):
    """The one keeps its curvature with the workers between rounds, the other has it from the server."""
    found = {}
    for stack in (1, 4):
        folder = tmp_path / f"stacks-of-{stack}"
        async with running(ServerProcess(folder / "server")) as server:
            found[stack] = await trained(server, folder / "swarm", algorithm, stack)
    (alone, expected), (stacked, params) = found[1], found[4]
    assert (stacked.status, stacked.version) == (alone.status, alone.version) == (RunStatus.FINISHED, ROUNDS)
    for name, values in expected.items():
        apart = np.abs(params[name] - values) / np.abs(values).max()
        assert apart.max() < 1e-3, name
        assert np.count_nonzero(apart > 1e-5) <= 0.01 * apart.size, name


MODEL_OF_ITS_OWN = """
import torch
from torch import nn
from worker.tasks.digits import Digits


class Own(nn.Linear):
    def forward(self, inputs):
        {line}
        return super().forward(inputs)


class Mine(Digits):
    name = "mine"

    def model(self):
        return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), Own(16, 10))
"""
LOOKS_AT_VALUES = "assert not self.training or float(inputs.sum()) == float(inputs.sum())"


async def test_a_model_that_cannot_be_stacked_enrols_nobody_where_stacking_was_asked_for(
    server: ServerProcess, tmp_path: Path
):
    task = tmp_path / "mine.py"
    task.write_text(MODEL_OF_ITS_OWN.format(line=LOOKS_AT_VALUES))
    with pytest.raises(InvalidTask, match="--stack 1 trains one by one"):
        await a_swarm(server, tmp_path / "swarm", 4, task=str(task))
    async with server.operator() as operator:
        assert await operator.workers() == ()


FAILS_FOR_ONE = """
import torch
from worker.tasks.base import Examples
from worker.tasks.digits import Digits


class Poisoned(Digits):
    name = "poisoned"

    def training_data(self):
        examples = super().training_data()
        inputs = examples.inputs.clone()
        inputs[examples.targets == 3] = float("inf")
        return Examples(inputs, examples.targets)
"""


async def test_one_worker_whose_data_are_no_numbers_is_refused_and_its_stack_is_not(
    server: ServerProcess, tmp_path: Path
):
    task = tmp_path / "poisoned.py"
    task.write_text(FAILS_FOR_ONE)
    request = RunRequest(
        task=str(task),
        name="poisoned",
        rounds=1,
        policies={"cohort_size": WORKERS, "quorum": 1, "deadline_s": 60.0},
        algorithm="fedavg",
        local_steps=5,
    )
    async with server.operator() as operator:
        run_id = (await begin(operator, request)).run_id
    events = await a_swarm(server, tmp_path / "swarm", WORKERS, task=str(task), rounds=1)
    refused = {event.worker for event in events if isinstance(event, Refused)}
    begun = {event.worker for event in events if isinstance(event, Training)}
    assert {event.code for event in events if isinstance(event, Refused)} == {"not-finite"}
    assert 0 < len(refused) < len(begun) == WORKERS
    async with server.operator() as operator:
        (round_,) = await operator.rounds(run_id)
    assert round_.admitted == WORKERS - len(refused)
    assert not [event for event in events if isinstance(event, Failed | NotStacked)]
