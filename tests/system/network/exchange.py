# SPDX-License-Identifier: Apache-2.0
"""One exchange of the proxy with the server: a body goes up and an answer comes down, as the fault wants it.

Both move at the same time. A connection that is cut is closed behind the last byte that was to pass.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import h11

from tests.system.network.faults import Fault, Kind, Request, Stall
from tests.system.network.peer import Cut, CutHere, Peer, connect, shaped

KEPT_BYTES = 64 * 1024


@dataclass
class Exchange:
    """One request as it went to the server, and what the server answered."""

    request: Request
    is_copy: bool
    """Made by the proxy; nobody hears its answer."""
    sent_bytes: int = 0
    """Of the request's body."""
    status: int | None = None
    answer: bytearray = field(default_factory=bytearray)
    """The body of the answer; of a long one, the beginning."""
    answered: bool = False
    """The answer came from the server whole."""
    heard: bool = False
    """It went to the sender whole."""
    began_s: float = 0.0
    """On the loop's clock, as are the other two."""
    answered_s: float | None = None
    """When the server began to answer; before anybody heard of it."""
    ended_s: float | None = None


@dataclass(frozen=True)
class Passage:
    """A request on its way: what is to be sent, and how."""

    request: Request
    fault: Fault
    head: h11.Request
    body: AsyncIterator[bytes]
    is_copy: bool = False


class Carrier:
    """Carries requests to one server, and counts the faults that took effect on the way."""

    def __init__(
        self, server_port: int, applied: Counter[Kind], wait_out: Callable[[Stall], Awaitable[None]]
    ) -> None:
        """Args: wait_out: returns when a stall is over."""
        self._server_port = server_port
        self._applied = applied
        self._wait_out = wait_out

    async def carry(self, passage: Passage, exchange: Exchange, hearer: Peer | None) -> None:
        """Carry a request to the server and its answer to `hearer`, or to nobody.

        Raises:
            Cut: a connection ended before its time, by the fault's will or not.
        """
        loop = asyncio.get_running_loop()
        exchange.began_s = loop.time()
        server = await connect(self._server_port)
        up = asyncio.ensure_future(self._carry_up(passage, server, exchange))
        down = asyncio.ensure_future(self._carry_down(passage.fault, server, exchange, hearer))
        try:
            await asyncio.wait([up, down], return_when=asyncio.FIRST_COMPLETED)
            if not down.done() or exchange.sent_bytes == passage.request.size_bytes:
                await up  # otherwise the answer has come before the whole body went up
            await down
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            await server.closed()
            exchange.ended_s = loop.time()

    async def _carry_up(self, passage: Passage, server: Peer, exchange: Exchange) -> None:
        fault = passage.fault
        if not await _sent(server, passage.head):
            return
        try:
            async for piece in shaped(
                passage.body, fault.up_bytes_per_s, fault.cut_request_at, fault.stall, self._wait_out
            ):
                if not await _sent(server, h11.Data(data=piece)):
                    return
                exchange.sent_bytes += len(piece)
        except CutHere:
            self._applied[Kind.REQUEST_CUT] += 1
            raise
        await _sent(server, h11.EndOfMessage())
        if fault.up_bytes_per_s is not None:
            self._applied[Kind.SLOW_UP] += 1
        if fault.stall is not None and exchange.sent_bytes > fault.stall.after_bytes:
            self._applied[Kind.STALLED] += 1

    async def _carry_down(self, fault: Fault, server: Peer, exchange: Exchange, hearer: Peer | None) -> None:
        head = await server.head()
        if not isinstance(head, h11.Response):
            raise Cut
        exchange.answered_s = asyncio.get_running_loop().time()
        exchange.status = head.status_code
        pieces = _kept(server, exchange)
        if hearer is not None and not fault.lose_answer:
            with suppress(Cut):
                await self._tell(hearer, head, pieces, fault)
                exchange.heard = True
            if not exchange.heard:
                await _read_on(pieces, exchange)
                raise Cut
            return
        async for _ in pieces:
            pass
        if hearer is not None:
            self._applied[Kind.ANSWER_LOST] += 1
            raise Cut

    async def _tell(
        self, hearer: Peer, head: h11.Response, pieces: AsyncIterator[bytes], fault: Fault
    ) -> None:
        """Raises: Cut: not all of it went to the hearer."""
        await hearer.send(_closing(head) if hearer.is_still_sending() else head)
        try:
            async for piece in shaped(pieces, fault.down_bytes_per_s, fault.cut_answer_at):
                await hearer.send(h11.Data(data=piece))
        except CutHere:
            self._applied[Kind.ANSWER_CUT] += 1
            raise
        await hearer.send(h11.EndOfMessage())
        if fault.down_bytes_per_s is not None:
            self._applied[Kind.SLOW_DOWN] += 1


async def _read_on(pieces: AsyncIterator[bytes], exchange: Exchange) -> None:
    """The record wants a short answer whole; the server of a long one is to notice that nobody listens."""
    async for _ in pieces:
        if len(exchange.answer) == KEPT_BYTES:
            break


async def _tell(
    hearer: Peer, head: h11.Response, pieces: AsyncIterator[bytes], fault: Fault, applied: Counter[Kind]
) -> None:
    """Raises: Cut: not all of it went to the hearer."""
    await hearer.send(_closing(head) if hearer.is_still_sending() else head)
    try:
        async for piece in shaped(pieces, fault.down_bytes_per_s, fault.cut_answer_at):
            await hearer.send(h11.Data(data=piece))
    except CutHere:
        applied[Kind.ANSWER_CUT] += 1
        raise
    await hearer.send(h11.EndOfMessage())
    if fault.down_bytes_per_s is not None:
        applied[Kind.SLOW_DOWN] += 1


def _closing(head: h11.Response) -> h11.Response:
    """The head of an answer that came early: what is still being sent will not be read."""
    return h11.Response(status_code=head.status_code, headers=[*head.headers, (b"Connection", b"close")])


async def _kept(server: Peer, exchange: Exchange) -> AsyncIterator[bytes]:
    async for piece in server.body():
        exchange.answer += piece[: KEPT_BYTES - len(exchange.answer)]
        yield piece
    exchange.answered = True


async def _sent(server: Peer, event: h11.Event) -> bool:
    """False if the server takes no more: it has answered, or is gone, and the other direction will tell."""
    try:
        await server.send(event)
    except Cut:
        return False
    return True
