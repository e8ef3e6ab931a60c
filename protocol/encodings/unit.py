# SPDX-License-Identifier: Apache-2.0
"""`unit_int8`: values in [−1, 1] as the nearest of 255 levels. For the state's `direction`.

    k = round(127·x)           ties to even
    x = k/127                  what is decoded

It is the server that writes it, once for all workers, so nothing is drawn: equal tensors are equal bytes.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.encodings.constants import NO_CONSTANTS, Constants, require_constants
from protocol.encodings.integers import Codes, Float32Array, OfCodes


@dataclass(frozen=True)
class Unit(OfCodes):
    """Values in [−1, 1] as signed codes, rounded to nearest."""

    bundle: str | None = "direction"
    constants: tuple[str, ...] = ()

    def check_constants(self, constants: Constants) -> None:
        """Raises: MalformedTensorMessage: there are any."""
        require_constants(self.name, {}, constants)

    def constants_for(self, values: Float32Array) -> Constants:
        return NO_CONSTANTS

    def encode(self, values: Float32Array, constants: Constants = NO_CONSTANTS, seed: int = 0) -> memoryview:
        """Give the payload bytes of `values`; what is beyond 1 becomes 1.

        Raises:
            NotFinite: a value is NaN or infinite.
        """
        factor = np.float32(self.codes.highest)

        def scaled(some: Float32Array, out: Float32Array) -> None:
            with np.errstate(over="ignore", invalid="ignore"):  # an infinity is refused by name
                np.multiply(some, factor, out=out)

        return self.codes.write(values, scaled, None)

    def decode(self, payload: memoryview, out: Float32Array, constants: Constants = NO_CONSTANTS) -> None:
        """Write the elements of one `byte_range` into `out`, shape (stop - start,).

        Raises:
            MalformedTensorMessage: a code is there that is never written.
        """
        factor = np.float32(1 / self.codes.highest)

        def unscale(codes: Float32Array) -> None:
            codes *= factor

        self.codes.read(payload, out, unscale)

    def rounding(
        self, values: npt.NDArray[np.float64], constants: Constants = NO_CONSTANTS
    ) -> npt.NDArray[np.float64]:
        """How far encoding can have moved each value: half a level."""
        return np.full(values.shape, 0.5 / self.codes.highest * (1 + 2.0**-12))


UNIT_INT8 = Unit("unit_int8", Codes(8, signed=True))
