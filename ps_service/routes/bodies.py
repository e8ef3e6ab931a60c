# SPDX-License-Identifier: Apache-2.0
"""Receiving a tensor message over HTTP, and refusing one so that the sender learns why."""

import asyncio
import contextlib
import math
from functools import partial

from starlette.requests import ClientDisconnect, Request

from protocol.codec import MEDIA_TYPE, PART_MEDIA_TYPE
from protocol.errors import (
    FedSophiaError,
    InvalidMessage,
    LengthRequired,
    SizeMismatch,
    UnsupportedMediaType,
    UploadInterrupted,
)
from ps_service.inflow import Received, Source, inflow_of
from ps_service.intake import Intake
from ps_service.service import Service
from ps_service.to_its_end import to_its_end

DRAIN_BYTES = 64 * 1024 * 1024
STRANGER_DRAIN_BYTES = 1024 * 1024
STRANGER_DRAIN_S = 5.0


def content_length(request: Request) -> int:
    """Raises: LengthRequired: the request does not say how long its body is."""
    length = request.headers.get("content-length", "")
    if not _is_length(length):
        raise LengthRequired("an upload must state its Content-Length")
    return int(length)


def upload_offset(request: Request) -> int:
    """Raises: InvalidMessage: the request does not say where its first byte stands in the whole."""
    offset = request.headers.get("upload-offset", "")
    if not _is_length(offset):
        raise InvalidMessage(f"Upload-Offset: expected a number, got {offset[:32] or 'none'}")
    return int(offset)


def _is_length(value: str) -> bool:
    """Whether a header's value is a number that a length can be."""
    return value.isdecimal() and len(value) <= 18


def require_announced(request: Request, size_bytes: int, first: int | None) -> None:
    """The headers announce a body of `size_bytes`, or a part of it that begins with byte `first`.

    Raises:
        UnsupportedMediaType, LengthRequired, SizeMismatch.
    """
    if first is None:
        require_tensor_message(request, size_bytes)
        return
    require_tensor_message(request, None, PART_MEDIA_TYPE)
    length = content_length(request)
    whole = request.headers.get("upload-complete", "").strip() == "?1"
    if first + length > size_bytes or (whole and first + length != size_bytes):
        raise SizeMismatch(f"{size_bytes} bytes were declared, {first} + {length} are announced")


def require_tensor_message(request: Request, size_bytes: int | None, expected: str = MEDIA_TYPE) -> None:
    """The headers announce a tensor message, of this length if one is given.

    Raises:
        UnsupportedMediaType, LengthRequired, SizeMismatch.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != expected:
        raise UnsupportedMediaType(f"Content-Type: expected {expected}, got {media_type or 'none'}")
    coding = request.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise UnsupportedMediaType(f"Content-Encoding: expected none, got {coding[:32]}")
    length = content_length(request)
    if size_bytes is not None and length != size_bytes:
        raise SizeMismatch(f"Content-Length: {size_bytes} bytes were declared, {length} are announced")


class Body:
    """The body of one request, read in batches, at no less than a least pace.

    The pace is kept over windows: each ends with as many bytes as the pace brings in one time limit, and
    before it does the sender is waited for that long in all. What this server takes itself does not count.
    """

    def __init__(self, request: Request, service: Service) -> None:
        settings = service.settings
        self._scope = request.scope
        self._pieces = service.pieces
        self._source: Source = Received(request.receive)
        self._timeout_s = settings.body_timeout_s
        self._window_bytes = settings.min_body_bytes_per_s * settings.body_timeout_s
        self._left_s = self._timeout_s
        self._came_bytes = 0  # in this window
        self._meters = service.meters
        self._ended = False
        self._gives_way = False
        self._waiting: asyncio.Timeout | None = None
        self._drain_bytes = STRANGER_DRAIN_BYTES
        self._drain_s = min(STRANGER_DRAIN_S, self._timeout_s)

    def sender_is_known(self, drain_bytes: int = DRAIN_BYTES) -> None:
        """Drain more than a stranger would be given: `drain_bytes`, within one time limit in all."""
        self._drain_bytes = drain_bytes
        self._drain_s = self._timeout_s

    async def into(self, intake: Intake) -> None:
        """Feed everything to `intake`, off the event loop, while the next batch arrives.

        Raises:
            UploadInterrupted: the sender went away, fell behind, or gave way; what came before is fed.
            The errors of `Intake`.
        """
        # here, and not before: who has a place to send may have a batch in memory, but not everybody
        self._source = inflow_of(self._scope, self._source)
        with self._pieces.transfer():
            while not self._ended:
                try:
                    pieces = await self._next()
                except UploadInterrupted:
                    if rest := self._source.taken():
                        self._meters.received_bytes.inc(sum(map(len, rest)))
                        await to_its_end(partial(intake.feed, rest))
                    raise
                if pieces:
                    async with self._pieces.at_work:
                        await to_its_end(partial(intake.feed, pieces))

    def give_way(self) -> None:
        """Take no more: another request brings the rest."""
        self._gives_way = True
        if self._waiting is not None:
            self._waiting.reschedule(0)

    async def drain(self) -> None:
        """Read and drop what is left, within bounds: a client that is still sending hears no answer."""
        drained = 0
        with contextlib.suppress(FedSophiaError, TimeoutError):
            async with asyncio.timeout(self._drain_s):
                while not self._ended and drained < self._drain_bytes:
                    drained += sum(map(len, await self._next()))

    async def _next(self) -> list[bytes]:
        """The next pieces; none once the body has ended."""
        if self._gives_way:  # also where there is always a batch, and nothing is waited for
            self._require_pace()
        loop = asyncio.get_running_loop()
        asked_s = loop.time()
        try:
            async with asyncio.timeout(self._left_s) as self._waiting:
                pieces = await self._source.batch(self._pieces.size_bytes)
            self._ended = not pieces
        except TimeoutError:
            self._require_pace()
            pieces = self._source.taken()
        except ClientDisconnect:
            self._ended = True
            raise UploadInterrupted("the sender closed the connection") from None
        finally:
            self._waiting = None
        came_bytes = sum(map(len, pieces))
        self._meters.received_bytes.inc(came_bytes)
        self._left_s -= loop.time() - asked_s
        self._came_bytes += came_bytes
        if self._came_bytes >= self._window_bytes:
            self._left_s, self._came_bytes = self._timeout_s, 0
        return pieces

    def _require_pace(self) -> None:
        """The time of a window is over, or all time is.

        Raises:
            UploadInterrupted: the sender is given up.
        """
        came_bytes = self._came_bytes + self._source.held_bytes
        if self._gives_way:
            self._ended = True
            raise UploadInterrupted("another request goes on with this upload")
        least_bytes = max(1, math.ceil(self._window_bytes))
        if came_bytes < least_bytes:
            self._ended = True
            raise UploadInterrupted(
                f"{came_bytes or 'no'} bytes arrived in {self._timeout_s:g} s; expected {least_bytes}, "
                "or all that are left"
            )
