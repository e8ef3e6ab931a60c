# SPDX-License-Identifier: Apache-2.0
"""One HTTP/1.1 connection of the proxy, to a worker or to the server: h11 over asyncio's streams."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

import h11

from tests.system.network.faults import Stall

PIECE_BYTES = 64 * 1024
STEPS_PER_S = 20
"""A slow connection moves in so many small pieces a second."""

Head = h11.Request | h11.Response


class Cut(Exception):
    """A connection has ended before its time."""


class CutHere(Cut):
    """It has come to the place where it is to be cut."""


class Peer:
    """Whoever is at the other end of a connection."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        we_are: type[h11.CLIENT] | type[h11.SERVER],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._protocol = h11.Connection(we_are)
        # `drain` then waits until the kernel has every byte: a cut is where it is meant to be
        writer.transport.set_write_buffer_limits(high=0)

    async def head(self) -> Head | None:
        """Give the next request or final answer without its body; None when the other end has closed.

        Raises:
            Cut: it closed in the middle, or said what is not HTTP.
        """
        while not isinstance(event := await self._next_event(), Head | h11.ConnectionClosed):
            pass
        return None if isinstance(event, h11.ConnectionClosed) else event

    async def body(self) -> AsyncIterator[bytes]:
        """Give the body that follows a head, as it comes.

        Raises:
            Cut: the other end closed before its end.
        """
        while isinstance(event := await self._next_event(), h11.Data):
            yield bytes(event.data)

    async def send(self, event: h11.Event) -> None:
        """Raises: Cut: the other end is gone."""
        try:
            data = self._protocol.send(event)
            if data:
                self._writer.write(data)
                await self._writer.drain()
        except (OSError, h11.LocalProtocolError) as error:
            raise Cut from error

    def is_still_sending(self) -> bool:
        """Whether there is more to come of the body that is being read."""
        return self._protocol.their_state is h11.SEND_BODY

    def is_ready_for_more(self) -> bool:
        """Whether this connection can carry another request after the one that was just answered."""
        if self._protocol.our_state is not h11.DONE or self._protocol.their_state is not h11.DONE:
            return False
        self._protocol.start_next_cycle()
        return True

    def close(self) -> None:
        self._writer.close()

    async def closed(self) -> None:
        """Close, and wait until it is done; what was sent before arrives."""
        self._writer.close()
        try:
            async with asyncio.timeout(5):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            self._writer.transport.abort()

    async def _next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            while True:
                event = self._protocol.next_event()
                if event is not h11.NEED_DATA:
                    return event
                self._protocol.receive_data(await self._reader.read(PIECE_BYTES))
        except (OSError, h11.RemoteProtocolError) as error:
            raise Cut from error


async def connect(port: int) -> Peer:
    """Open a connection to the server on this port of loopback.

    Raises:
        Cut: nobody is there.
    """
    try:
        return Peer(*await asyncio.open_connection("127.0.0.1", port), we_are=h11.CLIENT)
    except OSError as error:
        raise Cut from error


async def shaped(
    pieces: AsyncIterator[bytes],
    bytes_per_s: int | None = None,
    cut_at: int | None = None,
    stall: Stall | None = None,
    wait_out: Callable[[Stall], Awaitable[None]] | None = None,
) -> AsyncIterator[bytes]:
    """Give the same bytes, more slowly or fewer of them; `wait_out` waits for the end of the stall.

    Raises:
        CutHere: `cut_at` bytes have been given, and there are more.
    """
    passed = 0
    pause_at = None if stall is None else stall.after_bytes
    async for piece in pieces:
        rest = memoryview(piece)
        while rest:
            if passed == cut_at:
                raise CutHere
            if stall is not None and wait_out is not None and passed == pause_at:
                pause_at = stall.place_after(passed)
                await wait_out(stall)
            part = rest[: _room(passed, bytes_per_s, (cut_at, pause_at))]
            if bytes_per_s is not None:
                await asyncio.sleep(len(part) / bytes_per_s)
            yield bytes(part)
            passed += len(part)
            rest = rest[len(part) :]


def _room(passed: int, bytes_per_s: int | None, places: Iterable[int | None]) -> int:
    """How many bytes may go at once: up to the next of the places where something happens."""
    rooms = [PIECE_BYTES]
    if bytes_per_s is not None:
        rooms.append(max(1, bytes_per_s // STEPS_PER_S))
    rooms += [place - passed for place in places if place is not None and place > passed]
    return min(rooms)


async def whole(body: bytes) -> AsyncIterator[bytes]:
    """A body that was recorded."""
    yield body
