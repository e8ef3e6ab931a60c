# SPDX-License-Identifier: Apache-2.0
"""Where requests wait for an assignment: many wait, one looks for all of them.

A request that waits is a future here and a name under its topics at the bell. It asks for a look when it
comes, and again whenever it is rung; one task takes all who have asked by then, looks for them together,
answers those for whom there is something and leaves the others waiting. Nothing is held in the database
meanwhile. Who is rung while somebody looks for it has asked again, so that no ring is missed.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping
from contextlib import suppress
from typing import Any

from protocol.errors import FedSophiaError, Internal
from ps_service.bell import Bell, worker_topic
from ps_service.looking import Found, Work

log = logging.getLogger("fed_sophia.http")

MOST_AT_ONCE = 500
"""Workers that are looked for in one read: others may have the processor between two."""

LONGEST_LOOK_S = 5.0
"""A look that is under way when the server stops may last so long."""

Looks = Callable[[Collection[str]], Awaitable[Mapping[str, Found]]]
"""Finds what each of these workers is to do."""


class WaitingRoom:
    """The requests of one server process that wait for an assignment."""

    def __init__(self, bell: Bell, looks: Looks) -> None:
        self._bell = bell
        self._look = looks
        self._waiting: dict[str, _Waiter] = {}
        """One a worker: whoever asks again has given its earlier question up."""
        self._asked: OrderedDict[_Waiter, None] = OrderedDict()
        """Who is to be looked for: who is called by name, then all others in the order of asking."""
        self._looked_for: set[_Waiter] = set()
        self._looking: asyncio.Task[None] | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(
        self,
        worker_id: str,
        topics: Iterable[str],
        wait_s: float,
        gone: Callable[[], Coroutine[Any, Any, object]] | None = None,
    ) -> Work | None:
        """What the worker is to do, as soon as it is known; None when the time is up or the server stops.

        It is looked for once at least, however short the wait, unless the server is stopping.

        Args:
            topics: what rings when there may be something, beside the worker's own topic.
            gone: ends when there is nobody left to be answered.

        Raises:
            WorkerRevoked: its credential was taken away meanwhile.
            FedSophiaError: what else is wrong with the worker, or went wrong with the look.
        """
        if self._closed:
            return None
        loop = asyncio.get_running_loop()
        waiter = _Waiter(worker_id, loop.create_future(), self._ask)
        timer = loop.call_later(wait_s, self._time_is_up, waiter)
        own_topic = worker_topic(worker_id)
        watch = None if gone is None else loop.create_task(gone())
        if watch is not None:
            watch.add_done_callback(lambda _: waiter.conclude(None))
        self.dismiss(worker_id)
        self._waiting[worker_id] = waiter
        try:
            with self._bell.ringing(waiter, topics), self._bell.ringing(_Called(waiter), [own_topic]):
                self._ask(waiter)
                return await waiter.answer
        finally:
            timer.cancel()
            if watch is not None:
                watch.cancel()
            if self._waiting.get(worker_id) is waiter:
                del self._waiting[worker_id]
            self._asked.pop(waiter, None)

    def dismiss(self, worker_id: str) -> None:
        """End a worker's wait: it has asked again, or for something else."""
        waiter = self._waiting.get(worker_id)
        if waiter is not None:
            waiter.conclude(None)

    def send_home(self) -> None:
        """End every wait, now and from now on: the server is stopping, and nobody looks any more."""
        self._closed = True
        self._asked.clear()
        for waiter in self._waiting.values():
            waiter.conclude(None)

    async def close(self) -> None:
        """Send everybody home, and wait until nobody reads the records."""
        self.send_home()
        if self._looking is not None:  # not cut off: a statement that is would leave its connection to close
            await asyncio.wait([self._looking], timeout=LONGEST_LOOK_S)
        if self._looking is not None:  # it clears this when it ends
            self._looking.cancel()
            with suppress(asyncio.CancelledError):
                await self._looking

    def _ask(self, waiter: "_Waiter", *, first: bool = False) -> None:
        if self._closed:
            return
        self._asked[waiter] = None
        if first:
            self._asked.move_to_end(waiter, last=False)
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_for_all())

    async def _look_for_all(self) -> None:
        """Look for everybody who has asked, and for who asks meanwhile, until nobody has."""
        try:
            while self._asked:
                self._looked_for = self._next_batch()
                await self._answer(self._looked_for)
        finally:
            self._looked_for = set()
            self._looking = None

    def _next_batch(self) -> set["_Waiter"]:
        """Those who asked first; who was answered since, and has not left yet, needs no look."""
        batch = [waiter for waiter, _ in zip(self._asked, range(MOST_AT_ONCE), strict=False)]
        for waiter in batch:
            del self._asked[waiter]
        return {waiter for waiter in batch if not waiter.answer.done()}

    async def _answer(self, batch: Collection["_Waiter"]) -> None:
        worker_ids = {waiter.worker_id for waiter in batch}
        if not worker_ids:
            return
        try:
            found = await self._look(worker_ids)
        except FedSophiaError as error:
            found = dict.fromkeys(worker_ids, error)
        except Exception:  # said once, and each of them is answered
            log.exception("looking for the work of %d workers failed", len(worker_ids))
            found = dict.fromkeys(worker_ids, Internal("the server failed; its log has the reason"))
        for waiter in batch:
            answer = found.get(waiter.worker_id)
            if answer is not None or (waiter.time_is_up and waiter not in self._asked):
                waiter.conclude(answer)

    def _time_is_up(self, waiter: "_Waiter") -> None:
        waiter.time_is_up = True
        # a look that is due or under way is waited for: what it finds would go nowhere
        if waiter not in self._asked and waiter not in self._looked_for:
            waiter.conclude(None)


class _Waiter:
    """One request that waits. To ring it is to ask for a look."""

    __slots__ = ("_ask", "answer", "time_is_up", "worker_id")

    def __init__(self, worker_id: str, answer: asyncio.Future[Work | None], ask: Callable[..., None]) -> None:
        self.worker_id = worker_id
        self.answer = answer
        self.time_is_up = False
        self._ask = ask

    def set(self) -> None:
        if not self.answer.done():
            self._ask(self)

    def call(self) -> None:
        """It is this one that is meant: the few who are invited do not queue behind a crowd."""
        if not self.answer.done():
            self._ask(self, first=True)

    def conclude(self, found: Found) -> None:
        if self.answer.done():
            return
        if isinstance(found, FedSophiaError):
            self.answer.set_exception(type(found)(found.detail))  # shared, its trace would grow with each
        else:
            self.answer.set_result(found)


class _Called:
    """A waiter at its own topic."""

    __slots__ = ("_waiter",)

    def __init__(self, waiter: _Waiter) -> None:
        self._waiter = waiter

    def set(self) -> None:
        self._waiter.call()
