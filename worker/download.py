# SPDX-License-Identifier: Apache-2.0
"""What has come of a tensor message that may be cut off and gone on with."""

import hashlib
from collections.abc import AsyncIterator

import numpy as np

from protocol.errors import DigestMismatch, MessageTooLarge, UnexpectedAnswer


class Download:
    """A tensor message on its way here: what has come of it, in memory."""

    def __init__(self, digest: str) -> None:
        self.digest = digest
        self.received_bytes = 0
        self.from_store = False
        """Whether some of it came from an object store."""
        self._message = memoryview(b"")
        self._sha256 = hashlib.sha256()

    def begin(self, size_bytes: int, first: int) -> None:
        """Expect so many bytes in all, of which those from `first` on come now: 0, or all that came before.

        Raises:
            MessageTooLarge: there is not so much memory.
        """
        if first and (first, size_bytes) == (self.received_bytes, len(self._message)):
            return
        self.received_bytes, self._sha256 = 0, hashlib.sha256()
        try:
            self._message = np.empty(size_bytes, dtype=np.uint8).data  # takes its pages as they fill
        except MemoryError:
            text = f"{size_bytes} bytes of tensors do not fit in this machine's memory"
            raise MessageTooLarge(text) from None

    def take(self, chunk: bytes) -> bool:
        """Take the next bytes; False if there is no room for them."""
        end = self.received_bytes + len(chunk)
        if end > len(self._message):
            return False
        self._message[self.received_bytes : end] = chunk
        self._sha256.update(chunk)
        self.received_bytes = end
        return True

    async def take_all(self, size_bytes: int, first: int, chunks: AsyncIterator[bytes]) -> None:
        """Take what comes, from `first` on, of so many bytes in all; it may end before they are there.

        Raises:
            UnexpectedAnswer: more comes.
            MessageTooLarge: there is not so much memory.
        """
        self.begin(size_bytes, first)
        async for chunk in chunks:
            if not self.take(chunk):
                raise UnexpectedAnswer(f"more bytes came than the {size_bytes} that were announced")

    def forget(self) -> None:
        """Nothing of what has come is worth going on with."""
        self.received_bytes, self._sha256, self.from_store = 0, hashlib.sha256(), False

    def finished(self) -> memoryview:
        """The whole message, read-only.

        Raises:
            DigestMismatch: the bytes that came are not those.
        """
        if self._sha256.hexdigest() != self.digest:
            came = self._sha256.hexdigest()
            raise DigestMismatch(f"tensors {self.digest}: the bytes received have digest {came}")
        return self._message.toreadonly()
