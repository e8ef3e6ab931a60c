# SPDX-License-Identifier: Apache-2.0
"""A real worker that takes its time, dies where its seed says, and comes back as a restarted process would.

A death is the cancellation of everything the worker does: its thread is stopped, its connections close, and
nothing is declined. What survives is its state directory, to which it comes back once the round is over.
"""

import asyncio
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpx

from benchmarks.disturbed.disturbances import Death, Disturbances
from benchmarks.disturbed.record import Record
from fed_sophia.rounds_view import RoundsView
from protocol.codec import Bundle
from protocol.messages import Assignment, RoundSummary
from worker.agent import Trains, serve
from worker.events import AgentEvent, Training
from worker.local_state import Kept
from worker.options import WorkerOptions
from worker.patience import Stopped
from worker.sending import KEEPALIVE_S
from worker.update import Trained


class Paced:
    """A trainer that takes at least so long; many wait at the same time, one trains at a time."""

    def __init__(self, trainer: Trains, pace_s: float, processor: threading.Lock, record: Record) -> None:
        self._trainer = trainer
        self._pace_s = pace_s
        self._processor = processor
        self._record = record

    def train(
        self,
        assignment: Assignment,
        state: Mapping[str, Bundle],
        kept: Kept | None,
        stop: threading.Event | None = None,
    ) -> Trained:
        self._record.assignments.add(assignment.assignment_id)
        if (stop or threading.Event()).wait(self._pace_s):
            raise Stopped
        with self._processor:
            return self._trainer.train(assignment, state, kept, stop)

    def evaluate(
        self, state: Mapping[str, Bundle], stop: threading.Event | None = None
    ) -> tuple[int, dict[str, float]]:
        with self._processor:
            return self._trainer.evaluate(state, stop)


class Watch:
    """A view of the rounds that lets workers wait for the end of one."""

    def __init__(self, view: RoundsView) -> None:
        self._view = view
        self._over: defaultdict[int, asyncio.Event] = defaultdict(asyncio.Event)

    async def until_over(self, round_number: int) -> None:
        await self._over[round_number].wait()

    def show(self, rounds: Sequence[RoundSummary], finished: bool = False) -> None:
        for round_ in rounds:
            if round_.status.ended:
                self._over[round_.round].set()
        self._view.show(rounds, finished)

    def __enter__(self) -> Self:
        self._view.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._view.__exit__(kind, error, trace)


@dataclass(frozen=True)
class Surroundings:
    """What the workers of a run share."""

    task_name: str
    disturbances: Disturbances
    watch: Watch
    record: Record
    executor: Executor


class Mortal:
    """One worker over its lives."""

    def __init__(
        self, options: WorkerOptions, trainer: Trains, pace_s: float, surroundings: Surroundings
    ) -> None:
        self._options = options
        self._trainer = trainer
        self._pace_s = pace_s
        self._around = surroundings
        self._life: asyncio.Task[None] | None = None
        self._round = 0
        self._death: Death | None = None
        """What awaits it in this round."""

    async def live(self) -> None:
        """Be this worker until cancelled, through all its deaths.

        Raises:
            FedSophiaError: what a worker cannot mend.
        """
        while True:
            self._life = asyncio.create_task(self._one_life())
            try:
                await asyncio.wait([self._life])
            finally:
                self._life.cancel()
                await asyncio.gather(self._life, return_exceptions=True)
            if not self._life.cancelled():
                return self._life.result()
            death, self._death = self._death, None
            assert death is not None, "only a death ends a life"
            await self._around.watch.until_over(self._round)
            await asyncio.sleep(death.away_s)

    async def _one_life(self) -> None:
        around = self._around
        await serve(
            self._options,
            around.task_name,
            self._trainer,
            self._hear,
            executor=around.executor,
            transport=_Mortality(self),
        )

    def _hear(self, event: AgentEvent) -> None:
        self._around.record.hear(event)
        if isinstance(event, Training) and event.round != self._round:
            self._round = event.round
            deaths = self._around.disturbances.deaths_in(event.round)
            self._death = deaths.get(self._options.partition_index)
            if self._death is not None and not self._death.sending:
                asyncio.get_running_loop().call_later(
                    self._death.after * self._pace_s, self._die, event.round
                )

    def _die(self, round_number: int) -> None:
        assert self._life is not None
        if self._death is None or self._round != round_number:
            return  # it has outlived the round
        self._around.record.deaths["sending" if self._death.sending else "training"] += 1
        self._life.cancel()

    @property
    def dies_sending(self) -> bool:
        return self._death is not None and self._death.sending

    async def last_words(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Half of what was to be sent."""
        async for chunk in body:
            yield chunk[: len(chunk) // 2]
            break
        self._die(self._round)
        await asyncio.Event().wait()


class _Mortality(httpx.AsyncBaseTransport):
    """The worker's connections, on which it may die in the middle of an upload."""

    def __init__(self, mortal: Mortal) -> None:
        self._mortal = mortal
        limits = httpx.Limits(max_connections=8, keepalive_expiry=KEEPALIVE_S)
        self._transport = httpx.AsyncHTTPTransport(verify=False, limits=limits)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == "PATCH" and self._mortal.dies_sending:
            assert isinstance(request.stream, httpx.AsyncByteStream)
            request.stream = _Body(self._mortal.last_words(aiter(request.stream)))
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        await self._transport.aclose()


class _Body(httpx.AsyncByteStream):
    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._chunks
