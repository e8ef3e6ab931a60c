# SPDX-License-Identifier: Apache-2.0
"""Codes: small integers of 8 or 4 bits, how values are rounded to them and how they share bytes.

A *level* is the distance between the values of two neighbouring codes. Signed codes are symmetric, −127 … 127
or −7 … 7: −128 and −8 are never written, and refused where they are read, so that no value has two
spellings. Unsigned codes are 0 … 255 or 0 … 15. Of 4 bits, two elements share a byte: the first in its low
half, the second in its high half; the high half that an odd number of elements leaves over is 0.

Stochastic rounding: x levels become ⌊x + u⌋ with u uniform in [0, 1), whose mean is x. Here x is first
rounded to 1/4096 of a level, and u is drawn from {0, 1/4096, … 4095/4096}: the mean is off by 1/8192 of a
level at most, and what stands on a code already stays there, whatever is drawn.

Everything is done in blocks that stay in a processor's cache.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from protocol.errors import MalformedTensorMessage, NotFinite

Float32Array = npt.NDArray[np.float32]
Scaled = Callable[[Float32Array, Float32Array], None]
"""(values, out): writes what the codes are to say of these values, in units of one level over `parts`."""

BLOCK = 32_768
"""Elements; a whole number of bytes of any codes."""
_DITHER_BITS = 12
DITHERED_PARTS = 2**_DITHER_BITS
"""Into so many parts a level is divided where rounding is stochastic."""
_FOUR_DRAWS = np.uint64(0x0001_0001_0001_0001 * (DITHERED_PARTS - 1))
_ROUNDS_TO_INTEGER = np.float32(1.5 * 2**23)
"""Added to a float32 below 2²² in size, it leaves the nearest integer in the low bits, ties to even."""


@dataclass(frozen=True)
class Codes:
    """The codes of one encoding."""

    bits: Literal[4, 8]
    signed: bool

    @property
    def highest(self) -> int:
        return 2 ** (self.bits - 1) - 1 if self.signed else int(2**self.bits - 1)

    @property
    def group(self) -> int:
        """How many elements share bytes."""
        return 8 // self.bits

    def size_bytes(self, num_elements: int) -> int:
        return -(-num_elements // self.group)

    def write(self, values: Float32Array, scaled: Scaled, seed: int | None) -> memoryview:
        """Give the payload of `values`.

        Args:
            scaled: gives a block in units of a level, or of a level over `DITHERED_PARTS` with a seed.
                What is beyond the highest code becomes it.
            seed: of stochastic rounding; None rounds to nearest, ties to even.

        Raises:
            NotFinite: `scaled` gave NaN or an infinity.
        """
        flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
        dither = None if seed is None else _Dither(seed)
        top = self.highest * (1 if dither is None else DITHERED_PARTS)
        payload = np.empty(self.size_bytes(flat.size), dtype=np.uint8)
        room = np.empty(min(BLOCK, flat.size), dtype=np.float32)
        for start in range(0, flat.size, BLOCK):
            some = flat[start : start + BLOCK]
            block = room[: some.size]
            scaled(some, block)
            _keep_within(block, -top if self.signed else 0, top)
            block += _ROUNDS_TO_INTEGER
            integers = block.view(np.int32)  # their low 16 bits count from here on
            if dither is not None:
                integers += dither.draw(some.size)
                integers >>= _DITHER_BITS
            first = start // self.group
            self._pack(integers, payload[first : first + self.size_bytes(some.size)])
        return payload.data

    def read(self, payload: memoryview, out: Float32Array, unscale: Callable[[Float32Array], None]) -> None:
        """Write the values of codes into `out`.

        Args:
            payload: of a part that begins and ends between groups, or ends where the tensor does.
            unscale: turns a block of codes into values, in place.

        Raises:
            MalformedTensorMessage: a code is there that is never written.
        """
        held = np.frombuffer(payload, dtype=np.uint8)
        for start in range(0, out.size, BLOCK):
            block = out[start : start + BLOCK]
            first = start // self.group
            self._unpack(held[first : first + self.size_bytes(block.size)], block)
            if self.signed and block.min() < -self.highest:
                raise MalformedTensorMessage(
                    f"code {-self.highest - 1} stands in the payload; it has no meaning"
                )
            unscale(block)
        if out.size % self.group and held[-1] >> self.bits:
            raise MalformedTensorMessage("the half of the last byte that holds no element is not 0")

    def _pack(self, integers: npt.NDArray[np.int32], out: npt.NDArray[np.uint8]) -> None:
        if self.bits == 8:
            out[:] = integers  # of each its lowest byte
            return
        pairs = np.zeros(out.size, dtype="<u2")
        pairs.view(np.uint8)[: integers.size] = integers
        high = pairs >> 4
        high &= 0xF0
        pairs &= 0x0F
        pairs |= high
        out[:] = pairs

    def _unpack(self, held: npt.NDArray[np.uint8], out: Float32Array) -> None:
        if self.bits == 8:
            out[:] = held.view(np.int8) if self.signed else held
            return
        table = _SIGNED_PAIRS if self.signed else _UNSIGNED_PAIRS
        whole = out.size // 2
        # clip: every byte has an entry, and other modes would go through a buffer
        np.take(
            table.view(np.float64)[:, 0], held[:whole], out=out[: 2 * whole].view(np.float64), mode="clip"
        )
        if out.size % 2:
            out[-1] = table[held[-1], 0]


@dataclass(frozen=True)
class OfCodes:
    """What the encodings that send codes have in common."""

    name: str
    codes: Codes

    @property
    def group(self) -> int:
        return self.codes.group

    def size_bytes(self, num_elements: int) -> int:
        return self.codes.size_bytes(num_elements)

    def byte_range(self, start: int, stop: int) -> tuple[int, int]:
        """Which payload bytes hold the elements start … stop-1, whole groups or up to the tensor's end."""
        return start // self.group, self.size_bytes(stop)


class _Dither:
    """Draws whole numbers below `DITHERED_PARTS`; the same seed gives the same ones."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.SFC64(seed)

    def draw(self, count: int) -> npt.NDArray[np.uint16]:
        raw = self._bits.random_raw(-(-count // 4))
        raw &= _FOUR_DRAWS
        drawn: npt.NDArray[np.uint16] = raw.view(np.uint16)[:count]
        return drawn


def _keep_within(block: Float32Array, lowest: int, highest: int) -> None:
    """Clip, in place. Raises: NotFinite: there is NaN or an infinity."""
    with np.errstate(invalid="ignore"):
        least, most = block.min(), block.max()  # NaN where there is one
    if lowest <= least and most <= highest:
        return
    if not (np.isfinite(least) and np.isfinite(most)):
        raise NotFinite("a value is not finite, or does not fit this encoding")
    np.clip(block, lowest, highest, out=block)


def _pairs_of(signed: bool) -> Float32Array:
    """Both codes of every byte, shape (256, 2)."""
    of_byte = np.arange(256, dtype=np.uint8)[:, np.newaxis] >> np.array([0, 4], dtype=np.uint8) & 0x0F
    codes: npt.NDArray[np.int16] = of_byte.astype(np.int16)
    if signed:
        codes[codes > 7] -= 16
    return codes.astype(np.float32)


_SIGNED_PAIRS, _UNSIGNED_PAIRS = _pairs_of(True), _pairs_of(False)
