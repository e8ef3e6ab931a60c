# SPDX-License-Identifier: Apache-2.0
"""Menu: how one tensor travels. To add one, copy `dense.py` and add a line to `ENCODINGS`."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from protocol.encodings import bounded, dense, square_root, unit
from protocol.encodings.constants import NO_CONSTANTS, Constants
from protocol.errors import UnknownEncoding

__all__ = ["ENCODINGS", "NO_CONSTANTS", "Constants", "Encoding", "encoding_named"]


class Encoding(Protocol):
    """A way to turn float32 values into payload bytes and back, any contiguous part at a time."""

    @property
    def name(self) -> str: ...

    @property
    def bundle(self) -> str | None:
        """The only bundle that it is for; None where it is for any."""

    @property
    def group(self) -> int:
        """How many elements share bytes: parts begin and end between groups, or end where the tensor does."""

    @property
    def constants(self) -> tuple[str, ...]:
        """The names of the numbers that the header must say for it, in their order."""

    def size_bytes(self, num_elements: int) -> int: ...

    def byte_range(self, start: int, stop: int) -> tuple[int, int]: ...

    def check_constants(self, constants: Constants) -> None: ...

    def constants_for(self, values: npt.NDArray[np.float32]) -> Constants:
        """Those by which these values can be written, where nobody knows better ones."""

    def encode(
        self, values: npt.NDArray[np.float32], constants: Constants = NO_CONSTANTS, seed: int = 0
    ) -> memoryview:
        """Give the payload bytes.

        Args:
            constants: none chooses those for `values`.
            seed: of stochastic rounding, where there is any: the same seed gives the same bytes.
        """

    def decode(
        self, payload: memoryview, out: npt.NDArray[np.float32], constants: Constants = NO_CONSTANTS
    ) -> None: ...

    def rounding(
        self, values: npt.NDArray[np.float64], constants: Constants = NO_CONSTANTS
    ) -> npt.NDArray[np.float64]: ...


ENCODINGS: dict[str, Encoding] = {
    "f32": dense.F32,
    "bf16": dense.BF16,
    "f16": dense.F16,
    "bounded_int8": bounded.BOUNDED_INT8,
    "bounded_int4": bounded.BOUNDED_INT4,
    "sqrt_int8": square_root.SQRT_INT8,
    "sqrt_int4": square_root.SQRT_INT4,
    "unit_int8": unit.UNIT_INT8,
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
