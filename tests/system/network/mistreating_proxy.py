# SPDX-License-Identifier: Apache-2.0
"""A proxy on loopback that mistreats the requests which pass through it, as a plan wants it.

    worker ──► MistreatingProxy ──► server          async with MistreatingProxy(server.port, plan) as proxy:
                     │                                  … workers whose server is at proxy.url …
               plan(Request) → Fault                assert proxy.applied[Kind.ANSWER_LOST] > 0

A body is passed on as it comes, so that back pressure and early answers are those of a plain wire; it is held
in memory only where the fault needs a copy of it. Every exchange with the server is on record, also those
whose answer nobody heard. Each goes over a connection of its own.
"""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Self

import h11

from tests.system.network.exchange import Carrier, Exchange, Passage
from tests.system.network.faults import (
    Behind,
    Fault,
    Kind,
    Plan,
    Request,
    Stall,
    Twice,
    every_request_unharmed,
)
from tests.system.network.peer import Cut, Peer, whole

LONGEST_EXCHANGE_S = 120.0


class MistreatingProxy:
    """Stands before one server; an async context manager."""

    def __init__(
        self,
        server_port: int,
        plan: Plan = every_request_unharmed,
        longest_exchange_s: float = LONGEST_EXCHANGE_S,
    ) -> None:
        self._longest_exchange_s = longest_exchange_s
        self.plan = plan
        """May be exchanged for another at any time."""
        self.url = ""
        self.exchanges: list[Exchange] = []
        """In the order in which they began."""
        self.applied: Counter[Kind] = Counter()
        self._carrier = Carrier(server_port, self.applied, self._wait_out)
        self._seen: Counter[str] = Counter()
        self._answered: Counter[str] = Counter()
        self._one_more_answered = asyncio.Condition()
        self._at_work: set[asyncio.Task[None]] = set()
        self._failures: list[BaseException] = []

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._welcome, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        while self._at_work:
            for task in self._at_work:
                task.cancel()
            await asyncio.wait(self._at_work)
        if self._failures and error is None:
            raise self._failures[0]

    def on(self, route: str) -> list[Exchange]:
        """What has passed on a route."""
        return [exchange for exchange in self.exchanges if exchange.request.route == route]

    # --- the connection of a sender ----------------------------------------------------------------

    def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._begin(self._serve(Peer(reader, writer, we_are=h11.SERVER)))

    async def _serve(self, sender: Peer) -> None:
        try:
            while isinstance(head := await sender.head(), h11.Request):
                await self._treat(sender, head)
                if not sender.is_ready_for_more():
                    break
        finally:
            await sender.closed()

    async def _treat(self, sender: Peer, head: h11.Request) -> None:
        """Raises: Cut: the sender's connection is to end here, or has ended."""
        request = self._numbered(head)
        fault = self.plan(request)
        if fault.delay_s:
            await asyncio.sleep(fault.delay_s)
            self.applied[Kind.DELAYED] += 1
        if not (fault.sender_gone or fault.twice or fault.replay):
            await self._hold_back(fault.behind)
            await self._exchange(Passage(request, fault, head, sender.body()), sender)
            return
        recorded = b"".join([piece async for piece in sender.body()])
        passage = Passage(request, fault, head, whole(recorded))
        if fault.sender_gone:
            self._begin(self._go_alone(passage))
            raise Cut
        await self._hold_back(fault.behind)
        if fault.twice is None:
            await self._exchange(passage, sender)
        else:
            copy = Passage(request, Fault(), head, whole(recorded), is_copy=True)
            await self._exchange_twice(passage, copy, sender, fault.twice)
        if fault.replay is not None:
            copy = Passage(request, Fault(), head, whole(recorded), is_copy=True)
            self._begin(self._replay(copy, fault.replay))

    def _numbered(self, head: h11.Request) -> Request:
        method, path = head.method.decode(), head.target.decode()
        size_bytes = int(dict(head.headers).get(b"content-length", 0))
        unnumbered = Request(method, path, size_bytes, ordinal=0, attempt=0)
        self._seen.update({unnumbered.route, unnumbered.line})
        ordinal, attempt = self._seen[unnumbered.route], self._seen[unnumbered.line]
        return Request(method, path, size_bytes, ordinal, attempt)

    # --- what may become of a request --------------------------------------------------------------

    async def _go_alone(self, passage: Passage) -> None:
        self.applied[Kind.SENDER_GONE] += 1
        await self._hold_back(passage.fault.behind)
        await self._exchange(passage, None)

    async def _exchange_twice(self, passage: Passage, copy: Passage, sender: Peer, twice: Twice) -> None:
        if twice is Twice.IN_A_ROW:
            await self._exchange(copy, None)
            await self._exchange(passage, sender)
            self.applied[Kind.TWICE_IN_A_ROW] += 1
            return
        both = [self._exchange(passage, sender), self._exchange(copy, None)]
        if twice is Twice.AT_ONCE_SECOND_HEARD:
            both.reverse()
        await asyncio.gather(*map(self._begin, both))
        self.applied[Kind.TWICE_AT_ONCE] += 1

    async def _replay(self, copy: Passage, behind: Behind) -> None:
        if await self._passed(behind):
            await self._exchange(copy, None)
            self.applied[Kind.REPLAYED] += 1

    async def _hold_back(self, behind: Behind | None) -> None:
        if behind is not None and await self._passed(behind):
            self.applied[Kind.OVERTAKEN] += 1

    async def _wait_out(self, stall: Stall) -> None:
        await self._passed(Behind(stall.until, at_most_s=stall.for_s))

    async def _passed(self, behind: Behind) -> bool:
        """Wait for those that are to pass before; False if they did not come in time."""
        wanted = self._answered[behind.route] + behind.more
        with suppress(TimeoutError):
            async with asyncio.timeout(behind.at_most_s), self._one_more_answered:
                await self._one_more_answered.wait_for(lambda: self._answered[behind.route] >= wanted)
                return True
        return False

    async def _exchange(self, passage: Passage, hearer: Peer | None) -> None:
        """Raises: Cut: a connection ended before its time."""
        exchange = Exchange(passage.request, passage.is_copy)
        self.exchanges.append(exchange)
        try:
            async with asyncio.timeout(self._longest_exchange_s):
                await self._carrier.carry(passage, exchange, hearer)
        finally:
            if exchange.answered:
                self._answered.update({passage.request.route, passage.request.line})
                async with self._one_more_answered:
                    self._one_more_answered.notify_all()

    # --- tasks -------------------------------------------------------------------------------------

    def _begin(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._at_work.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._at_work.discard(task)
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, Cut):
            self._failures.append(error)
