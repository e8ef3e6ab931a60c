# SPDX-License-Identifier: Apache-2.0
"""Reads small pieces of far-away messages in few requests: who goes on where a piece ended gets more at once.

A piece that follows nothing is fetched as it is asked for; one that follows another is twice as long as that,
up to a bound. So a header costs its own bytes, and a message read from end to end a request in 4 MiB. What
has been fetched is kept for as long as there is room, and the more messages are read at a time, the less of
each is fetched ahead; where there is no room at all, each piece costs its own bytes again.

Threads that want the same bytes wait for one request; no lock is held while it is under way.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock

MIB = 1024 * 1024
MOST_BYTES = 4 * MIB
"""Of one request."""
KEPT_BYTES = 64 * MIB
"""Of all messages together."""
GAP_BYTES = 4096
"""Padding between tensors, and what is rounded to whole groups: what begins so near still follows."""

Fetch = Callable[[str, int, int], memoryview]


class _Piece:
    """Bytes start … stop-1 of a message, there or on their way."""

    def __init__(self, digest: str, start: int, stop: int) -> None:
        self.digest = digest
        self.start = start
        self.stop = stop
        self.data: Future[memoryview] = Future()

    def __len__(self) -> int:
        return self.stop - self.start


class ReadAhead:
    """What was read of messages that never change, and a little more."""

    def __init__(self, fetch: Fetch, most_bytes: int = MOST_BYTES, kept_bytes: int = KEPT_BYTES) -> None:
        """Args: fetch: called with (digest, start, stop); gives just these bytes, or raises."""
        self._fetch = fetch
        self._most_bytes = most_bytes
        self._kept_bytes = kept_bytes
        self._lock = Lock()
        self._of_message: dict[str, list[_Piece]] = {}  # by where they start; they do not overlap
        self._order: OrderedDict[_Piece, None] = OrderedDict()  # the first makes room first
        self._held_bytes = 0

    def read_into(self, digest: str, size_bytes: int, offset: int, view: memoryview) -> None:
        """Fill `view` with the bytes from `offset` of a message of `size_bytes`.

        Raises:
            What `fetch` raises.
        """
        position, end = offset, offset + len(view)
        while position < end:
            piece, is_new = self._piece_at(digest, size_bytes, position, end)
            if is_new:
                self._fill(piece)
            data = piece.data.result()[position - piece.start : end - piece.start]
            view[position - offset : position - offset + len(data)] = data
            position += len(data)

    def forget(self, digest: str) -> None:
        """Keep nothing of a message."""
        with self._lock:
            for piece in list(self._of_message.get(digest, ())):
                self._drop(piece)

    def _piece_at(self, digest: str, size_bytes: int, position: int, end: int) -> tuple[_Piece, bool]:
        """The piece with this byte, and whether it is for the caller to fill."""
        with self._lock:
            pieces = self._of_message.setdefault(digest, [])
            index = bisect_right(pieces, position, key=lambda piece: piece.start)
            before = pieces[index - 1] if index else None
            if before is not None and position < before.stop:
                self._order.move_to_end(before)
                return before, False
            wanted = end - position
            if before is not None and position - before.stop <= max(wanted, GAP_BYTES):
                # a fair share, for of each message two bundles may be read at a time: what is fetched ahead
                # is not to be forgotten unread
                room = self._kept_bytes // (2 * len(self._of_message))
                wanted = max(wanted, min(2 * len(before), room))
            stop = min(position + min(wanted, self._most_bytes), size_bytes)
            if index < len(pieces):
                stop = min(stop, pieces[index].start)
            piece = _Piece(digest, position, stop)
            pieces.insert(index, piece)
            self._order[piece] = None
            self._held_bytes += len(piece)
            while self._held_bytes > self._kept_bytes:
                self._drop(next(iter(self._order)))
            return piece, True

    def _fill(self, piece: _Piece) -> None:
        try:
            piece.data.set_result(self._fetch(piece.digest, piece.start, piece.stop))
        except BaseException as error:  # whatever it is: others may wait for these bytes
            with self._lock:
                self._drop(piece)
            piece.data.set_exception(error)
            raise

    def _drop(self, piece: _Piece) -> None:
        """Forget a piece, unless it is forgotten already; who is reading it still has it."""
        if piece not in self._order:
            return
        del self._order[piece]
        self._held_bytes -= len(piece)
        pieces = self._of_message[piece.digest]
        pieces.remove(piece)
        if not pieces:
            del self._of_message[piece.digest]
