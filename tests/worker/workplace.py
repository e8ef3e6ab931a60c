# SPDX-License-Identifier: Apache-2.0
"""One worker's disk, its stub of a trainer, and what it says, for tests of the agent."""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from protocol.codec import Bundle
from protocol.messages import Assignment
from tests.worker.small_server import JOIN_TOKEN, PARAMS, SmallServer
from worker.agent import serve
from worker.events import AgentEvent, Refused
from worker.local_state import Kept, LocalState
from worker.options import WorkerOptions
from worker.patience import Pauses, Stopped
from worker.threads import Companion, for_ever
from worker.trainers import Trains


@dataclass(frozen=True)
class StubTrained:
    bundles: dict[str, Bundle]
    kept: Kept | None
    num_examples: int = 12
    local_steps: int = 3
    metrics: dict[str, float] = field(default_factory=dict)


def at_once(stop: threading.Event) -> None:
    """Work that takes no time."""


@dataclass
class StubTrainer:
    """Gives delta = 1 + steps kept before; counts what it was asked, and how often at the same time."""

    trained: list[str] = field(default_factory=list)
    fails_with: Exception | None = None
    gives: float = 1.0
    works: Callable[[threading.Event], object] = at_once
    at_work: int = 0
    most_at_work: int = 0

    def train(
        self,
        assignment: Assignment,
        state: Mapping[str, Bundle],
        kept: Kept | None,
        stop: threading.Event | None = None,
    ) -> StubTrained:
        self.trained.append(assignment.assignment_id)
        self._work(stop)
        assert all(np.array_equal(state["params"][name], PARAMS[name]) for name in PARAMS)
        step = 0 if kept is None else kept.step
        delta = {name: np.full_like(values, self.gives + step) for name, values in PARAMS.items()}
        return StubTrained({"delta": delta}, Kept(step + 3, {"momentum": delta}))

    def evaluate(
        self, state: Mapping[str, Bundle], stop: threading.Event | None = None
    ) -> tuple[int, dict[str, float]]:
        self._work(stop)
        return 7, {"test_accuracy": 0.5}

    def _work(self, stop: threading.Event | None) -> None:
        assert stop is not None
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            self.works(stop)
            if self.fails_with is not None:
                raise self.fails_with
            if stop.is_set():
                raise Stopped
        finally:
            self.at_work -= 1


@dataclass
class Workplace:
    """One worker's disk and what it reported; `work` is one life of its process."""

    state_dir: Path
    server: SmallServer
    events: list[AgentEvent] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)
    join_token: str | None = str(JOIN_TOKEN)
    rotate_key: bool = False
    heartbeat_s: float = 20.0
    clock_s: Callable[[], float] = time.monotonic

    async def work(self, trainer: Trains, max_assignments: int, failure: Companion = for_ever) -> None:
        async def sleep(wait_s: float) -> None:
            self.slept.append(wait_s)

        options = WorkerOptions(
            server_url="http://fed.example",
            join_token=self.join_token,
            name="mine",
            state_dir=self.state_dir,
            task="digits",
            max_assignments=max_assignments,
            rotate_key=self.rotate_key,
        )
        pauses = Pauses(sleep=sleep, jitter=lambda: 0.5, clock_s=self.clock_s, heartbeat_s=self.heartbeat_s)
        async with asyncio.timeout(20):
            await serve(
                options,
                "digits",
                trainer,
                self.events.append,
                pauses,
                transport=self.server,
                failure=failure,
            )

    def told(self, kind: type[AgentEvent]) -> list[AgentEvent]:
        return [event for event in self.events if isinstance(event, kind)]

    def refusals(self) -> list[str]:
        return [event.code for event in self.events if isinstance(event, Refused)]

    def kept_step(self) -> int | None:
        kept = LocalState(self.state_dir / "local_state").load("run-1")
        return None if kept is None else kept.step

    def outbox(self) -> list[Path]:
        return list((self.state_dir / "outbox").iterdir())
