# SPDX-License-Identifier: Apache-2.0
"""Loads a task in a thread, while its worker makes itself known, waits for an assignment and pulls the model.

torch takes longer to import than all of that. A task of the menu is known by its name before it is loaded; a
user's own file tells its name when it is run, and so is loaded first: its data may take long besides, and a
worker that had asked for work meanwhile would keep a round waiting.

A task that cannot be loaded ends its worker at once, whatever that is about.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Generic, NoReturn, TypeVar

from protocol.codec import Bundle
from protocol.errors import FedSophiaError
from protocol.messages import Assignment
from worker.local_state import Kept
from worker.threads import for_ever, until_ended
from worker.trainers import Trains
from worker.update import Trained

Made = TypeVar("Made", covariant=True)
"""What a task is made into, beside its name."""
Built = tuple[str, Sequence[Trains]]
"""A task's name, and its trainers."""


class NotLoaded(Exception):
    """The task that a worker has told the server of cannot be loaded."""

    def __init__(self, error: FedSophiaError) -> None:
        super().__init__(error.detail)
        self.error = error


class Loading(Generic[Made]):
    """A task and what trains it, in the making."""

    def __init__(
        self, building: "Future[tuple[str, Made]]", name: str | None, device: Callable[[], str] | None
    ) -> None:
        self._building = building
        self._device = device
        self._built = asyncio.wrap_future(building)
        self._name = name

    async def name(self) -> str:
        """Give the task's name, as soon as it is known.

        Raises:
            FedSophiaError: it is known to none but the task, which cannot be loaded.
        """
        return (await asyncio.shield(self._built))[0] if self._name is None else self._name

    async def device(self) -> str | None:
        """Give the name of what the trainers train on, if it can be told, once they have been made.

        Raises:
            FedSophiaError: the task cannot be loaded.
        """
        await asyncio.shield(self._built)
        return None if self._device is None else await asyncio.to_thread(self._device)

    async def made(self) -> Made:
        """Give it once it has been made.

        Raises:
            NotLoaded: the task cannot be loaded.
        """
        try:
            return (await asyncio.shield(self._built))[1]
        except FedSophiaError as error:
            raise NotLoaded(error) from None

    def trainer(self: "Loading[Sequence[Trains]]", number: int) -> Trains:
        """Give one that waits, once it is to work, until it has been made."""
        return _Awaited(self._building, number)

    async def failure(self) -> NoReturn:
        """A companion that fails when the loading does.

        Raises:
            NotLoaded: the task cannot be loaded.
        """
        await self.made()
        await for_ever()

    async def ended(self) -> None:
        await until_ended([self._built])


class _Awaited:
    """A trainer that first waits for its making, which heeds no `stop`: an import cannot be interrupted."""

    def __init__(self, building: "Future[Built]", number: int) -> None:
        self._building = building
        self._number = number

    def train(
        self,
        assignment: Assignment,
        state: Mapping[str, Bundle],
        kept: Kept | None,
        stop: threading.Event | None = None,
    ) -> Trained:
        return self._made().train(assignment, state, kept, stop)

    def evaluate(
        self, state: Mapping[str, Bundle], stop: threading.Event | None = None
    ) -> tuple[int, dict[str, float]]:
        return self._made().evaluate(state, stop)

    def _made(self) -> Trains:
        try:
            return self._building.result()[1][self._number]
        except FedSophiaError as error:
            raise NotLoaded(error) from None


@asynccontextmanager
async def loading(
    build: Callable[[], tuple[str, Made]], name: str | None, device: Callable[[], str] | None = None
) -> AsyncIterator[Loading[Made]]:
    """Build trainers in a thread, which has ended when the block is left, however it is left.

    Args:
        name: the task's, if it is known; None: only building tells.
        device: gives the name of what is trained on; called once all is built.

    Raises:
        FedSophiaError: what `build` raised, in the place of a NotLoaded.
    """
    executor = ThreadPoolExecutor(1, thread_name_prefix="load")
    task = Loading(executor.submit(build), name, device)
    executor.shutdown(wait=False)
    try:
        yield task
    except NotLoaded as failed:
        raise failed.error from failed.error.__cause__
    finally:
        await task.ended()
