# SPDX-License-Identifier: Apache-2.0
"""Text as numbers and back: frequent pieces of text have a number each, all others are spelled in bytes.

A text is split, from left to right and leaving nothing out, into pieces: a word of ASCII letters with the
space before it, up to three digits, a line's end with the indentation after it, spaces, or a run of anything
else. A number below 256 is a byte of UTF-8; from there on they are known pieces, the most frequent first.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

PIECE = re.compile(r" ?[A-Za-z]+|[0-9]{1,3}|\n *| +|[^A-Za-z0-9\n ]+")
NUM_BYTES = 256
MIN_COUNT = 2
"""A piece seen less often gets no number: its spelling is what the bytes' numbers are learned from."""


@dataclass(frozen=True)
class Vocabulary:
    """The known pieces; the first has number 256."""

    pieces: tuple[str, ...]

    def __len__(self) -> int:
        return NUM_BYTES + len(self.pieces)

    @classmethod
    def of(cls, texts: Iterable[str], max_size: int) -> "Vocabulary":
        """Know the most frequent pieces of some texts; of equally frequent ones those that sort first.

        Args: max_size: how many numbers there may be, with those of the bytes.
        """
        counts = Counter(piece for text in texts for piece in PIECE.findall(text))
        seen = sorted((-count, piece) for piece, count in counts.items() if count >= MIN_COUNT)
        return cls(tuple(piece for _, piece in seen[: max(0, max_size - NUM_BYTES)]))

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of the pieces in their order: two places with one digest give the same numbers."""
        # a length before each: pieces may hold any character there is
        parts = (_utf8(piece) for piece in self.pieces)
        return hashlib.sha256(b"".join(len(part).to_bytes(8) + part for part in parts)).hexdigest()

    def encode(self, text: str) -> npt.NDArray[np.int64]:
        """Give a text's numbers, 0 to `len(self)` - 1; shape (tokens,)."""
        numbers: list[int] = []
        for piece in PIECE.findall(text):
            number = self._numbers.get(piece)
            if number is None:
                numbers.extend(_utf8(piece))
            else:
                numbers.append(number)
        return np.array(numbers, dtype=np.int64)

    def decode(self, numbers: Sequence[int] | npt.NDArray[np.int64]) -> str:
        """Give the text of some numbers; bytes that spell none, as a model may draw them, become U+FFFD."""
        spelled = b"".join(
            bytes([number]) if number < NUM_BYTES else _utf8(self.pieces[number - NUM_BYTES])
            for number in map(int, numbers)
        )
        try:
            return spelled.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return spelled.decode("utf-8", "replace")

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {piece: number for number, piece in enumerate(self.pieces, start=NUM_BYTES)}


def _utf8(piece: str) -> bytes:
    return piece.encode("utf-8", "surrogatepass")
