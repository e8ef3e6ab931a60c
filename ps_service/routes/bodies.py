# SPDX-License-Identifier: Apache-2.0
"""Receiving a tensor message over HTTP, and refusing one so that the sender learns why."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect, Request

from protocol.codec import MEDIA_TYPE
from protocol.errors import (
    FedSophiaError,
    LengthRequired,
    SizeMismatch,
    UnsupportedMediaType,
    UploadInterrupted,
)
from ps_service.intake import Intake
from ps_service.metrics import Meters

BATCH_BYTES = 1024 * 1024
DRAIN_BYTES = 64 * 1024 * 1024
STRANGER_DRAIN_BYTES = 1024 * 1024
STRANGER_DRAIN_S = 5.0


def content_length(request: Request) -> int:
    """Raises: LengthRequired: the request does not say how long its body is."""
    length = request.headers.get("content-length", "")
    if not length.isdecimal() or len(length) > 18:
        raise LengthRequired("an upload must state its Content-Length")
    return int(length)


def require_tensor_message(request: Request, size_bytes: int | None) -> None:
    """The headers announce a tensor message, of this length if one is given.

    Raises:
        UnsupportedMediaType, LengthRequired, SizeMismatch.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != MEDIA_TYPE:
        raise UnsupportedMediaType(f"Content-Type: expected {MEDIA_TYPE}, got {media_type or 'none'}")
    coding = request.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise UnsupportedMediaType(f"Content-Encoding: expected none, got {coding[:32]}")
    length = content_length(request)
    if size_bytes is not None and length != size_bytes:
        raise SizeMismatch(f"Content-Length: {size_bytes} bytes were declared, {length} are announced")


class Body:
    """The body of one request, read in batches, each within a time limit."""

    def __init__(self, request: Request, timeout_s: float, meters: Meters) -> None:
        self._chunks = request.stream().__aiter__()
        self._timeout_s = timeout_s
        self._meters = meters
        self._ended = False
        self._drain_bytes = STRANGER_DRAIN_BYTES
        self._drain_s = min(STRANGER_DRAIN_S, timeout_s)

    def sender_is_known(self, drain_bytes: int = DRAIN_BYTES) -> None:
        """Drain more than a stranger would be given: `drain_bytes`, within one time limit in all."""
        self._drain_bytes = drain_bytes
        self._drain_s = self._timeout_s

    async def into(self, intake: Intake) -> None:
        """Feed everything to `intake`, off the event loop, and finish it.

        Raises:
            UploadInterrupted: the sender went away or fell silent.
            The errors of `Intake`.
        """
        async for batch in self._batches():
            await asyncio.to_thread(intake.feed, batch)
        await asyncio.to_thread(intake.finish)

    async def drain(self) -> None:
        """Read and drop what is left, within bounds: a client that is still sending hears no answer."""
        drained = 0
        with contextlib.suppress(FedSophiaError, TimeoutError):
            async with asyncio.timeout(self._drain_s):
                while not self._ended and drained < self._drain_bytes:
                    drained += len(await self._next())

    async def _batches(self) -> AsyncIterator[bytes]:
        batch = bytearray()
        while True:
            chunk = await self._next()
            batch += chunk
            if len(batch) >= BATCH_BYTES or (batch and not chunk):
                yield bytes(batch)
                batch.clear()
            if not chunk:
                return

    async def _next(self) -> bytes:
        try:
            async with asyncio.timeout(self._timeout_s):
                chunk = await anext(self._chunks, b"")
        except TimeoutError:
            self._ended = True
            raise UploadInterrupted(f"nothing arrived for {self._timeout_s:g} s") from None
        except ClientDisconnect:
            self._ended = True
            raise UploadInterrupted("the sender closed the connection") from None
        self._ended = not chunk
        self._meters.received_bytes.inc(len(chunk))
        return chunk
