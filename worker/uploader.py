# SPDX-License-Identifier: Apache-2.0
"""Sends a kept update, and goes on where it was cut off for as long as each attempt brings it further.

One request carries as much as the way to the server bears. A proxy that takes a body whole before it hands
it on loses all of it where it cuts; one that limits bodies refuses it: then the parts become smaller.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from protocol.errors import (
    DigestMismatch,
    MalformedTensorMessage,
    MessageTooLarge,
    ServerUnreachable,
    SizeMismatch,
    StorageNotWritable,
    StorageUnavailable,
    TruncatedTensorMessage,
    UnexpectedAnswer,
    UploadInterrupted,
    UploadOffsetMismatch,
)
from protocol.messages import Receipt, UpdateHeader, UploadOffer
from worker.client import ServerClient
from worker.downloader import LEAST_PROGRESS_BYTES
from worker.store_client import StoreClient

MOST_PART_BYTES = 256 * 1024 * 1024
LEAST_PART_BYTES = 256 * 1024
CHUNK_BYTES = 1024 * 1024
_NOT_THERE = (
    UploadInterrupted,
    StorageNotWritable,
    StorageUnavailable,
    DigestMismatch,
    SizeMismatch,
    TruncatedTensorMessage,
    MalformedTensorMessage,
)
"""What the server says of a body in the store that it cannot use: it takes the same body itself."""


class Uploader:
    """The way of one worker's updates to its server."""

    def __init__(self, client: ServerClient, store: StoreClient | None = None) -> None:
        """Args: store: puts messages into the server's object store, where the server says so."""
        self._client = client
        self._store = store
        self._part_bytes = MOST_PART_BYTES
        self._part_first = 0
        self._put_url: str | None = None
        """Of the last body that was put into the store, while the server has not said what it found."""

    async def push(self, assignment_id: str, header: UpdateHeader, message: Path) -> Receipt:
        """Declare an update and send what the server does not hold of it; give the receipt.

        Raises:
            ServerUnreachable, UploadInterrupted: an attempt brought it no further.
        """
        reached, unharmed, past = -1, True, True
        cut_off: ServerUnreachable | UploadInterrupted | None = None
        while True:
            answer = await self._client.declare(assignment_id, header)
            if isinstance(answer, Receipt):
                return answer
            if answer.offset > header.size_bytes:
                raise UnexpectedAnswer(f"offset {answer.offset} of {header.size_bytes} bytes")
            if cut_off is not None:
                if answer.offset <= self._part_first:
                    self._make_parts_smaller()
                if answer.offset < reached + LEAST_PROGRESS_BYTES:
                    raise cut_off
            reached = answer.offset
            if past and (stored := await self._past(answer, header.size_bytes, message)):
                return stored
            past = False
            try:
                receipt = await self._send(answer.upload_url, reached, header.size_bytes, message)
            except UploadOffsetMismatch as error:
                cut_off = UploadInterrupted(error.detail)
            except (ServerUnreachable, UploadInterrupted) as error:
                cut_off = error
            except (
                MessageTooLarge
            ):  # says somebody on the way: the server knew the size when it made its offer
                if not self._make_parts_smaller():
                    raise
                reached = -1
            else:
                if unharmed:
                    self._part_bytes = min(self._part_bytes * 2, MOST_PART_BYTES)
                return receipt
            unharmed = False

    async def _past(self, offer: UploadOffer, size_bytes: int, message: Path) -> Receipt | None:
        """Put the body into the object store; None: it is to be sent to the server."""
        if self._put_url != offer.upload_url:
            if self._store is None or offer.put is None:
                return None
            if not await self._store.put(offer.put, size_bytes, _chunks(message, 0, size_bytes)):
                return None
            self._put_url = offer.upload_url
        try:
            receipt = await self._client.stored(offer.upload_url, size_bytes)
        except _NOT_THERE:
            receipt = None
        self._put_url = None  # if no answer came at all, the next push asks first
        return receipt

    def _make_parts_smaller(self) -> bool:
        smaller = max(self._part_bytes // 4, LEAST_PART_BYTES)
        self._part_bytes, before = smaller, self._part_bytes
        return smaller < before

    async def _send(self, url: str, offset: int, size_bytes: int, message: Path) -> Receipt:
        while True:
            self._part_first = offset
            part_bytes = min(self._part_bytes, size_bytes - offset)
            chunks = _chunks(message, offset, part_bytes)
            whole = offset + part_bytes == size_bytes
            answer = await self._client.send_part(url, offset, part_bytes, chunks, whole=whole)
            if isinstance(answer, Receipt):
                return answer
            if answer != offset + part_bytes or whole:
                raise UnexpectedAnswer(f"{answer} bytes are held after {offset} + {part_bytes} were sent")
            offset = answer


async def _chunks(path: Path, first: int, size_bytes: int) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(path.open, "rb") as file:
        file.seek(first)
        while size_bytes and (chunk := await asyncio.to_thread(file.read, min(size_bytes, CHUNK_BYTES))):
            yield chunk
            size_bytes -= len(chunk)
