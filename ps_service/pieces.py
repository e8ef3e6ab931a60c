# SPDX-License-Identifier: Apache-2.0
"""How much of one transfer is in memory at a time: the less, the more of them there are.

A large piece costs fewer turns of threads, and a few transfers have them; a crowd shares the memory.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from ps_service.in_order import cores

ALL_BYTES = 6 * 1024 * 1024
AT_WORK = 4
"""Of so many uploads at a time a piece is taken in, or of as many as there are cores, if they are more."""
MOST_BYTES, LEAST_BYTES = 1024 * 1024, 192 * 1024


class Pieces:
    """The transfers of one server process that are under way."""

    def __init__(self) -> None:
        self._transfers = 0
        self.at_work = asyncio.Semaphore(max(AT_WORK, cores()))
        """To be held while a piece of an upload is hashed, judged and written."""

    @property
    def size_bytes(self) -> int:
        """How large the next piece of a transfer is to be."""
        return min(MOST_BYTES, max(LEAST_BYTES, ALL_BYTES // max(1, self._transfers)))

    @contextmanager
    def transfer(self) -> Iterator[None]:
        """One more is under way while this is open."""
        self._transfers += 1
        try:
            yield
        finally:
            self._transfers -= 1
