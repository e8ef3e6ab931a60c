# SPDX-License-Identifier: Apache-2.0
"""Training as an agent asks for it: beside its loop, ended by a cancellation."""

from collections.abc import Mapping
from concurrent.futures import Executor
from functools import partial
from typing import Protocol

from protocol.codec import Bundle
from protocol.messages import Assignment
from worker.local_state import Kept
from worker.threads import stoppable
from worker.trainers import Trains
from worker.update import Trained


class TrainsAside(Protocol):
    """Does what `Trains` does, without holding up who awaits it."""

    async def train(
        self, assignment: Assignment, state: Mapping[str, Bundle], kept: Kept | None
    ) -> Trained: ...

    async def evaluate(self, state: Mapping[str, Bundle]) -> tuple[int, Mapping[str, float]]: ...


class InThread:
    """A trainer that is called in a thread."""

    def __init__(self, trainer: Trains, executor: Executor | None) -> None:
        """Args: executor: whose thread; None means the loop's own."""
        self._trainer = trainer
        self._executor = executor

    async def train(self, assignment: Assignment, state: Mapping[str, Bundle], kept: Kept | None) -> Trained:
        return await stoppable(partial(self._trainer.train, assignment, state, kept), self._executor)

    async def evaluate(self, state: Mapping[str, Bundle]) -> tuple[int, Mapping[str, float]]:
        return await stoppable(partial(self._trainer.evaluate, state), self._executor)
