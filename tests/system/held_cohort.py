# SPDX-License-Identifier: Apache-2.0
"""Two real workers without a model: their updates are fixed, and they wait until a test lets them go on."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fed_sophia.operator_client import OperatorClient
from protocol.codec import Bundle, digest_of, encode_bundle
from protocol.messages import Assignment, RunSpec, RunSummary, TensorSpec
from tests.system.conftest import ServerProcess
from worker.agent import serve
from worker.events import AgentEvent, Reconnecting
from worker.local_state import Kept
from worker.options import WorkerOptions
from worker.patience import Pauses

WORKERS = 2
WITHIN_S = 60.0
LARGE = (1024, 1024)
SMALL = (2, 3)


@dataclass(frozen=True)
class FixedUpdate:
    """What training gave."""

    bundles: dict[str, Bundle]
    kept: Kept | None = None
    num_examples: int = 12
    local_steps: int = 10
    metrics: dict[str, float] = field(default_factory=dict)


class FixedTrainer:
    """Gives an update that depends on the worker's slot alone; the second worker's when it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.trained: list[tuple[str, int]] = []

    def train(
        self,
        assignment: Assignment,
        state: Mapping[str, Bundle],
        kept: Kept | None,
        stop: threading.Event | None = None,
    ) -> FixedUpdate:
        self.trained.append((assignment.run_id, assignment.slot))
        if assignment.slot == 1:
            assert self.released.wait(WITHIN_S)
        value = 0.001 * (assignment.slot + 1)
        shapes = {name: values.shape for name, values in state["params"].items()}
        update = {name: np.full(shape, value, np.float32) for name, shape in shapes.items()}
        return FixedUpdate(dict.fromkeys(assignment.bundles, update))

    def evaluate(
        self, state: Mapping[str, Bundle], stop: threading.Event | None = None
    ) -> tuple[int, dict[str, float]]:
        raise AssertionError("nobody evaluates here")


class Cohort:
    """The two workers, as a test sees them."""

    def __init__(self) -> None:
        self.trainer = FixedTrainer()
        self.events: list[AgentEvent] = []
        self.may_try_again = asyncio.Event()

    def release(self) -> None:
        """Let the second worker finish its training."""
        self.trainer.released.set()

    async def refusals(self, count: int = 1) -> list[str]:
        """Wait until so many requests have failed; give why."""
        await until(lambda: len(self._refusals()) >= count)
        return self._refusals()

    def _refusals(self) -> list[str]:
        return [event.detail for event in self.events if isinstance(event, Reconnecting)]

    async def wait_to_try_again(self, _wait_s: float) -> None:
        async with asyncio.timeout(WITHIN_S):
            await self.may_try_again.wait()
        await asyncio.sleep(0.05)  # never ask in a tight circle


@asynccontextmanager
async def a_cohort(server: ServerProcess, directory: Path, rounds: int) -> AsyncIterator[Cohort]:
    """The workers at work for so many rounds; at the end they have done them."""
    cohort, token = Cohort(), await server.join_token(uses=WORKERS)
    pauses = Pauses(sleep=cohort.wait_to_try_again, jitter=lambda: 0.5)
    async with asyncio.timeout(2 * WITHIN_S), asyncio.TaskGroup() as workers:
        for index in range(WORKERS):
            name = f"w{index}"
            options = WorkerOptions(
                server.url, token, name, directory / name, "fixed", max_assignments=rounds
            )
            workers.create_task(serve(options, "fixed", cohort.trainer, cohort.events.append, pauses))
        yield cohort


def a_state(value: float, shape: tuple[int, ...] = LARGE) -> list[memoryview]:
    """A `params` message."""
    return encode_bundle("params", {"weight": np.full(shape, value, np.float32)})


async def a_run(operator: OperatorClient, shape: tuple[int, ...] = LARGE) -> RunSummary:
    """One round of both workers."""
    params = a_state(0.1, shape)
    await operator.put_tensors(params)
    return await operator.create_run(
        RunSpec(
            name="one-round",
            task="fixed",
            algorithm="fed-sophia-shared",
            model=(TensorSpec(name="weight", shape=shape),),
            params_digest=digest_of(params),
            rounds=1,
            cohort_size=WORKERS,
            quorum=WORKERS,
        )
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():
            await asyncio.sleep(0.02)


async def has_admitted(operator: OperatorClient, run: RunSummary, updates: int) -> None:
    """Wait until the run's round holds so many updates."""
    async with asyncio.timeout(WITHIN_S):
        while [round_.admitted for round_ in await operator.rounds(run.run_id)] != [updates]:
            await asyncio.sleep(0.02)
