# SPDX-License-Identifier: Apache-2.0
"""Brings the work of many members of a swarm together, for one trainer that does it for all of them at once.

    a member's turn → waits with those of its round → a stack of them is trained → its own result

Those wait together whose assignments differ in slot and seed alone. One stack at a time is begun: when as
many are there as it takes, when no member is missing any more, or when nobody has come for a moment.

No member suffers by another. One that is cancelled leaves, and the work goes on while anybody waits for it.
A stack that fails is halved until who failed is alone: log₂K + 1 times the work, at most.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from protocol.codec import Bundle
from protocol.errors import FedSophiaError
from protocol.messages import Assignment
from worker.aside import TrainsAside
from worker.local_state import Kept
from worker.patience import Stopped
from worker.threads import stoppable, until_ended
from worker.update import Trained

PATIENCE_S = 0.2
"""How long nobody has to come for a stack to be begun with those who are there."""
MOST_GROUPS = 16
"""Rounds of which it is known how many members have been trained."""
_OWN = {"assignment_id", "slot", "seed", "deadline_ms", "heartbeat_s"}
"""What assignments that are trained together may differ in."""


@dataclass(frozen=True)
class Part:
    """One member's part of a round."""

    member: int
    assignment: Assignment
    kept: Kept | None


class TrainsTogether(Protocol):
    """Trains many members at once; synchronous, called in a thread, one call at a time."""

    @property
    def most(self) -> int:
        """So many parts at once; it may become fewer."""
        ...

    def train(
        self, parts: Sequence[Part], state: Mapping[str, Bundle], stop: threading.Event
    ) -> Sequence[Trained]:
        """Do the local steps of these members; one result a part, in their order.

        Args:
            parts: of assignments that differ in slot and seed alone.
            stop: set from another thread, it ends the work by `Stopped`.
        """
        ...


def wait_before(
    here: int, trained: int, *, members: int, most: int, quiet_s: float, patience_s: float
) -> float:
    """Seconds until those who wait together are begun with, if nobody comes; 0: now.

    Args:
        here: how many wait.
        trained: how many have waited before them, in the same round.
        members: there are no more than so many.
        most: a stack takes no more than so many.
        quiet_s: since the last of them came.
    """
    if here >= most or here + trained >= members:
        return 0.0
    return max(patience_s - quiet_s, 0.0)


@dataclass(eq=False)
class _Waiting:
    part: Part
    state: Mapping[str, Bundle]
    result: "asyncio.Future[Trained]"


@dataclass
class _Group:
    """Those who can be trained together."""

    waiting: dict[_Waiting, None] = field(default_factory=dict)  # in the order they came
    last_came_s: float = 0.0
    last_begun_s: float = -math.inf
    trained: int = 0


class Gathering:
    """Where the members of a swarm wait for one another."""

    def __init__(
        self,
        trainer: TrainsTogether,
        evaluator: TrainsAside,
        executor: Executor,
        members: int,
        shrunk: Callable[[int], None],
        *,
        patience_s: float = PATIENCE_S,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        evaluator: measures for any of them.
        executor: in whose threads the stacks are trained.
        shrunk: is told how many the trainer takes at once, whenever these have become fewer.
        """
        self._trainer = trainer
        self._evaluator = evaluator
        self._executor = executor
        self._members = members
        self._shrunk = shrunk
        self._most = trainer.most
        self._patience_s = patience_s
        self._clock_s = clock_s
        self._groups: dict[str, _Group] = {}
        self._here: set[_Waiting] = set()
        self._came = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._at_work: list[_Waiting] = []
        self._work: asyncio.Task[Sequence[Trained]] | None = None

    def member(self, number: int) -> TrainsAside:
        """The trainer of this member."""
        return _Member(self, self._evaluator, number)

    async def train(self, part: Part, state: Mapping[str, Bundle]) -> Trained:
        """Give what this part came to; cancelled when it is the last of its stack, the work has ended.

        Raises:
            FedSophiaError: what the part raises by itself.
        """
        waiting = _Waiting(part, state, asyncio.get_running_loop().create_future())
        group = self._group_of(part.assignment)
        group.waiting[waiting] = None
        self._here.add(waiting)
        group.last_came_s = self._clock_s()
        self._came.set()
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        try:
            return await waiting.result
        except asyncio.CancelledError:
            group.waiting.pop(waiting, None)
            self._came.set()  # nobody may be left to wait for
            await self._end_for_nobody()
            raise
        finally:
            self._here.discard(waiting)

    def _group_of(self, assignment: Assignment) -> _Group:
        alike = assignment.model_dump_json(exclude=_OWN)
        group = self._groups.setdefault(alike, _Group())
        for other in [key for key, each in self._groups.items() if not each.waiting and key != alike]:
            if len(self._groups) > MOST_GROUPS:
                del self._groups[other]
        return group

    async def _run(self) -> None:
        try:
            await self._train_who_waits()
        except Exception as error:  # of a report, say: whoever went on waiting would wait for ever
            for waiting in self._here:
                if not waiting.result.done():
                    waiting.result.set_exception(error)
            self._groups.clear()

    async def _train_who_waits(self) -> None:
        """Train stack after stack, while anybody waits."""
        while any(group.waiting for group in self._groups.values()):
            wait_s, group = self._next()
            if wait_s > 0:
                await self._arrival(wait_s)
                continue
            stack = list(group.waiting)[: self._most]
            for waiting in stack:
                del group.waiting[waiting]
            group.trained += len(stack)
            group.last_begun_s = self._clock_s()
            await self._do(stack)

    def _next(self) -> tuple[float, _Group]:
        """(seconds until it is begun with, the group that is first).

        Of those that are due, who had no turn for longest: one that is always full keeps no other waiting.
        """
        now_s = self._clock_s()
        waits = [
            (
                wait_before(
                    len(group.waiting),
                    group.trained,
                    members=self._members,
                    most=self._most,
                    quiet_s=now_s - group.last_came_s,
                    patience_s=self._patience_s,
                ),
                group,
            )
            for group in self._groups.values()
            if group.waiting
        ]
        return min(waits, key=lambda each: (each[0], each[1].last_begun_s))

    async def _arrival(self, within_s: float) -> None:
        self._came.clear()
        try:
            async with asyncio.timeout(within_s):
                await self._came.wait()
        except TimeoutError:
            pass

    async def _do(self, stack: list[_Waiting]) -> None:
        """Train a stack, in halves if it fails."""
        left = [stack]
        while left:
            now = [waiting for waiting in left.pop() if not waiting.result.done()]
            if not now:
                continue
            middle = len(now) // 2
            error = await self._attempt(now)
            if isinstance(error, FedSophiaError) and middle:
                left += [now[middle:], now[:middle]]
            elif error is not None:
                for waiting in now:
                    if not waiting.result.done():
                        waiting.result.set_exception(error)
            if self._trainer.most < self._most:
                self._most = self._trainer.most
                self._shrunk(self._most)

    async def _attempt(self, stack: list[_Waiting]) -> Exception | None:
        """Give everyone of the stack its result; None: they have it, or none of them waits any more."""
        parts, state = [waiting.part for waiting in stack], stack[0].state
        self._at_work = stack
        train = partial(self._trainer.train, parts, state)
        self._work = asyncio.create_task(stoppable(train, self._executor))
        await asyncio.wait([self._work])
        work, self._work, self._at_work = self._work, None, []  # its results are large: theirs from now on
        try:
            results = work.result()
        except (asyncio.CancelledError, Stopped):  # by the last of them
            for waiting in stack:
                waiting.result.cancel()
            return None
        except Exception as error:
            return error
        for waiting, trained in zip(stack, results, strict=True):
            if not waiting.result.done():
                waiting.result.set_result(trained)
        return None

    async def _end_for_nobody(self) -> None:
        """End the work if nobody waits for it any more."""
        if self._work is None or not self._at_work:
            return
        if all(waiting.result.done() for waiting in self._at_work):
            self._work.cancel()
            await until_ended([self._work])


class _Member:
    """What stands where one member's own trainer would."""

    def __init__(self, gathering: Gathering, evaluator: TrainsAside, number: int) -> None:
        self._gathering = gathering
        self._evaluator = evaluator
        self._number = number

    async def train(self, assignment: Assignment, state: Mapping[str, Bundle], kept: Kept | None) -> Trained:
        return await self._gathering.train(Part(self._number, assignment, kept), state)

    async def evaluate(self, state: Mapping[str, Bundle]) -> tuple[int, Mapping[str, float]]:
        return await self._evaluator.evaluate(state)
