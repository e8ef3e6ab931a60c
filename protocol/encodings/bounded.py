# SPDX-License-Identifier: Apache-2.0
"""`bounded_*`: a delta as integers against the box that holds every honest one (`protocol/bound.py`).

    d = Δ + (1−a)·θ_0          in [−R, R], whatever the data: no range is measured, nothing saturates
    k = ⌊L·d/R + u⌋            the code; L = 127 or 7, u uniform in [0, 1): the mean of k is L·d/R
    d = k·(R/L)                what is decoded; who knows θ_0 forms Δ = d − (1−a)·θ_0

R and 1−a travel as the constants `scale` and `shrinkage`. `encode` is given d, and `decode` gives it.
Source: none; ours. FedLion (arXiv 2402.09941) sends deltas as integers too, which its sign steps make whole.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.encodings.constants import NO_CONSTANTS, Constants, require_constants
from protocol.encodings.integers import DITHERED_PARTS, Codes, Float32Array, OfCodes
from protocol.errors import NotFinite

LEAST_SCALE, MOST_SCALE = 2.0**-100, 2.0**100
_RANGES = {"scale": (LEAST_SCALE, MOST_SCALE), "shrinkage": (0.0, 1.0)}


@dataclass(frozen=True)
class Bounded(OfCodes):
    """Values in [−scale, scale] as signed codes, rounded stochastically."""

    bundle: str | None = "delta"
    constants: tuple[str, ...] = tuple(_RANGES)

    def check_constants(self, constants: Constants) -> None:
        """Raises: MalformedTensorMessage: they are not those of this encoding."""
        require_constants(self.name, _RANGES, constants)

    def constants_for(self, values: Float32Array) -> Constants:
        """The smallest box around values that were moved by nothing; a run has one known in advance.

        Raises:
            NotFinite: a value is NaN, or too large for this encoding.
        """
        with np.errstate(invalid="ignore"):  # NaN of any bits is refused by name
            largest = float(np.abs(values).max(initial=0))
        if not largest <= MOST_SCALE:
            raise NotFinite(f"{self.name}: a value is not finite, or too large for this encoding")
        return {"scale": max(largest, LEAST_SCALE), "shrinkage": 0.0}

    def encode(self, values: Float32Array, constants: Constants = NO_CONSTANTS, seed: int = 0) -> memoryview:
        """Give the payload bytes of `values`; what is beyond the scale becomes it.

        Raises:
            NotFinite: a value is NaN or infinite.
        """
        constants = constants or self.constants_for(values)
        self.check_constants(constants)
        factor = np.float32(self.codes.highest * DITHERED_PARTS / constants["scale"])

        def scaled(some: Float32Array, out: Float32Array) -> None:
            with np.errstate(over="ignore", invalid="ignore"):  # an infinity is refused by name
                np.multiply(some, factor, out=out)

        return self.codes.write(values, scaled, seed)

    def decode(self, payload: memoryview, out: Float32Array, constants: Constants = NO_CONSTANTS) -> None:
        """Write the elements of one `byte_range` into `out`, shape (stop - start,).

        Raises:
            MalformedTensorMessage: a code is there that is never written.
        """
        factor = np.float32(constants["scale"] / self.codes.highest)

        def unscale(codes: Float32Array) -> None:
            codes *= factor

        self.codes.read(payload, out, unscale)

    def rounding(
        self, values: npt.NDArray[np.float64], constants: Constants = NO_CONSTANTS
    ) -> npt.NDArray[np.float64]:
        """How far encoding can have moved each value: a level."""
        return np.full(values.shape, constants["scale"] / self.codes.highest * (1 + 2.0**-12))


BOUNDED_INT8 = Bounded("bounded_int8", Codes(8, signed=True))
BOUNDED_INT4 = Bounded("bounded_int4", Codes(4, signed=True))
