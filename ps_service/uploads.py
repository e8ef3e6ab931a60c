# SPDX-License-Identifier: Apache-2.0
"""Bodies that come in parts: what has come is kept between requests, and one request at a time has each.

What is known of a body (hash, reader, checks) stays in memory while it pauses, for so many of them; for
the others, and after a start, it is made anew: what is on disk is read again once.
"""

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from protocol.errors import (
    FedSophiaError,
    StorageCorrupt,
    StorageNotWritable,
    StorageUnavailable,
    UploadInProgress,
)
from ps_service.intake import Intake
from ps_service.storage.blobs import BlobStore, Part

MOST_IN_MEMORY = 64
GIVES_WAY_WITHIN_S = 10.0


@dataclass(frozen=True)
class Incoming:
    """A body on its way in, and where it is written."""

    intake: Intake
    part: Part

    @property
    def received_bytes(self) -> int:
        return self.intake.received_bytes


@dataclass
class _Turn:
    """Who has an upload, and who wants it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    give_way: Callable[[], None] = lambda: None
    requests: int = 0
    worker_id: str | None = None
    """Who is sending."""


class Uploads:
    """The bodies on their way into one store."""

    def __init__(self, blobs: BlobStore, *, shared: bool = False) -> None:
        """Args: shared: whether another server may be asked to go on with what pauses here."""
        self._blobs = blobs
        self._most_in_memory = 0 if shared else MOST_IN_MEMORY
        self._paused: OrderedDict[str, Incoming] = OrderedDict()  # the one that paused last is the last
        self._turns: defaultdict[str, _Turn] = defaultdict(_Turn)

    @asynccontextmanager
    async def alone(
        self, upload_id: str, give_way: Callable[[], None], worker_id: str | None = None
    ) -> AsyncIterator[None]:
        """Be the one request that has this upload: another that has it is told to give way.

        A sender whose connection broke comes again before the server has noticed that it broke.

        Args:
            give_way: ends this request soon; called when another wants the upload.

        Raises:
            UploadInProgress: the other does not end.
        """
        turn = self._turns[upload_id]
        turn.requests += 1
        try:
            turn.give_way()
            try:
                async with asyncio.timeout(GIVES_WAY_WITHIN_S):
                    await turn.lock.acquire()
            except TimeoutError:
                raise UploadInProgress("another request is sending this body; try again") from None
            turn.give_way, turn.worker_id = give_way, worker_id
            try:
                yield
            finally:
                turn.give_way, turn.worker_id = _Turn.give_way, None
                turn.lock.release()
        finally:
            turn.requests -= 1
            if not turn.requests:
                del self._turns[upload_id]

    def cut_off(self, worker_id: str) -> None:
        """End the requests by which this worker is sending: it may no more."""
        for turn in self._turns.values():
            if turn.worker_id == worker_id:
                turn.give_way()

    async def offset(self, upload_id: str) -> int:
        """How many bytes of this body are held. A request that is still sending it gives way.

        Raises:
            UploadInProgress: it does not.
        """
        async with self.alone(upload_id, give_way=lambda: None):
            paused = self._paused.get(upload_id)
            if paused is not None:
                return paused.received_bytes
            return await asyncio.to_thread(self._blobs.part_bytes, upload_id)

    async def take_up(self, upload_id: str, begin: Callable[[Part], Intake], *, afresh: bool) -> Incoming:
        """Go on where this body paused; what is on disk and cannot be right is thrown away.

        Args:
            begin: blocks; makes what takes a body into a part, from its first byte.
            afresh: begin with the first byte, whatever has come.
        """
        paused = self._paused.pop(upload_id, None)
        if paused is not None and not afresh:
            return paused
        return await asyncio.to_thread(self._open, upload_id, begin, paused, afresh)

    def _open(
        self, upload_id: str, begin: Callable[[Part], Intake], paused: Incoming | None, afresh: bool
    ) -> Incoming:
        if paused is not None:
            paused.part.discard()
        elif afresh:
            self._blobs.discard_part(upload_id)
        part = self._blobs.part(upload_id)
        try:
            intake = begin(part)
            intake.read_again(part)
            return Incoming(intake, part)
        except (StorageNotWritable, StorageUnavailable, StorageCorrupt, OSError):
            part.close()
            raise
        except FedSophiaError:  # what a power cut has left of it
            part.discard()
            part = self._blobs.part(upload_id)
            return Incoming(begin(part), part)

    async def pause(self, upload_id: str, incoming: Incoming) -> None:
        """Keep what has come of this body for a request that goes on."""
        self._paused[upload_id] = incoming
        if len(self._paused) > self._most_in_memory:
            _, longest = self._paused.popitem(last=False)
            await asyncio.to_thread(longest.part.close)

    async def discard(self, upload_id: str) -> None:
        """Forget what has come of a body. A request that is still sending it gives way.

        Raises:
            UploadInProgress: it does not.
        """
        async with self.alone(upload_id, give_way=lambda: None):
            await self._forget(upload_id)

    async def discard_all_but(self, wanted: set[str]) -> None:
        """Forget every body that is none of these and that no request has."""
        for upload_id in await asyncio.to_thread(self._blobs.parts):
            if upload_id in wanted or upload_id in self._turns:
                continue
            await self._forget(upload_id)

    async def _forget(self, upload_id: str) -> None:
        paused = self._paused.pop(upload_id, None)
        if paused is not None:
            await asyncio.to_thread(paused.part.discard)
        else:
            await asyncio.to_thread(self._blobs.discard_part, upload_id)

    async def close(self) -> None:
        """Write down what is held in memory; the server stops.

        Raises:
            StorageNotWritable: some could not be; all others are.
        """
        paused = [incoming.part for incoming in self._paused.values()]
        self._paused.clear()
        # together: a store that is far away, or gone, is waited for once
        closed = await asyncio.gather(
            *(asyncio.to_thread(part.close) for part in paused), return_exceptions=True
        )
        for error in closed:
            if error is not None:
                raise error
