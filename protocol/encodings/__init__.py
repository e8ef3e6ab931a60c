# SPDX-License-Identifier: Apache-2.0
"""Menu: how one tensor travels. To add one, copy `dense.py` and add a line to `ENCODINGS`."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from protocol.encodings import dense
from protocol.errors import UnknownEncoding


class Encoding(Protocol):
    """A way to turn float32 values into payload bytes and back, any contiguous part at a time."""

    @property
    def name(self) -> str: ...

    def size_bytes(self, num_elements: int) -> int: ...

    def byte_range(self, start: int, stop: int) -> tuple[int, int]: ...

    def encode(self, values: npt.NDArray[np.float32]) -> memoryview: ...

    def decode(self, payload: memoryview, out: npt.NDArray[np.float32]) -> None: ...

    def rounding(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]: ...


ENCODINGS: dict[str, Encoding] = {
    "f32": dense.F32,
    "bf16": dense.BF16,
    "f16": dense.F16,
}


def encoding_named(name: str) -> Encoding:
    """Give the encoding with this name.

    Raises:
        UnknownEncoding: there is none.
    """
    try:
        return ENCODINGS[name]
    except KeyError:
        raise UnknownEncoding(f"encoding {name!r}: expected one of {', '.join(ENCODINGS)}") from None
