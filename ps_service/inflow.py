# SPDX-License-Identifier: Apache-2.0
"""Where the bytes of a body wait for whoever takes them in, a batch at a time; then the sender waits.

ASGI hands a body on in pieces of a socket's buffer, each with a task's turn and copied twice. A tensor
message has thousands of them, so where the server is ours (`connections.py`) its protocol fills an `Inflow`
itself; `Received` gives the same from any ASGI server.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from ps_service.pieces import LEAST_BYTES

EXTENSION = "fed_sophia.inflow"
"""Where the scope of a request has what fills an inflow with its body."""


class Source(Protocol):
    """A body, a batch at a time."""

    held_bytes: int
    """Of the pieces that are there now."""

    async def batch(self, size_bytes: int) -> list[bytes]:
        """Wait for a batch of this size, or for the end of the body; give its pieces, none after the end.

        Raises:
            ClientDisconnect: the connection is closed, and all that came was given.
        """
        ...

    def taken(self) -> list[bytes]:
        """The pieces that are there now, fewer than a batch: what a wait that was cut short leaves."""
        ...


class Received:
    """A body as ASGI hands it on: each piece is a batch."""

    held_bytes = 0

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._ended = False

    async def batch(self, size_bytes: int) -> list[bytes]:
        while not self._ended:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            self._ended = not message.get("more_body", False)
            if piece := message.get("body", b""):
                return [piece]
        return []

    def taken(self) -> list[bytes]:
        return []


class Inflow:
    """A body as the protocol of its connection puts it here."""

    def __init__(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Args: pause, resume: stop and start the reading of the connection; repeating one is harmless."""
        self._pause = pause
        self._resume = resume
        self._pieces: list[bytes] = []
        self.held_bytes = 0
        self._batch_bytes = LEAST_BYTES
        self._ended = self._broken = False
        self._enough = asyncio.Event()

    def put(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self.held_bytes += len(piece)
        self._weigh()

    def end(self) -> None:
        """The body is whole."""
        self._ended = True
        self._enough.set()

    def break_off(self) -> None:
        """The connection is closed."""
        self._broken = not self._ended
        self._enough.set()

    async def batch(self, size_bytes: int) -> list[bytes]:
        self._batch_bytes = size_bytes
        if not (self._ended or self._broken):
            self._enough.clear()
            self._resume()
            self._weigh()
        await self._enough.wait()
        pieces = self.taken()
        if not pieces and self._broken:
            raise ClientDisconnect
        return pieces

    def taken(self) -> list[bytes]:
        pieces, self._pieces, self.held_bytes = self._pieces, [], 0
        if not (self._ended or self._broken):
            self._resume()
        return pieces

    def _weigh(self) -> None:
        if self.held_bytes >= self._batch_bytes:
            self._enough.set()
            self._pause()


def inflow_of(scope: Scope, otherwise: Source) -> Source:
    """What fills itself with the rest of this request's body, where its connection can; else `otherwise`."""
    fill: Callable[[Scope], Inflow | None] | None = (scope.get("extensions") or {}).get(EXTENSION)
    return (fill and fill(scope)) or otherwise
