# SPDX-License-Identifier: Apache-2.0
"""`sqrt_*`: a Hessian estimate as integers against the largest root of each tensor.

    s = max √h                 of the tensor, as a float32: the constant `scale`
    k = ⌊L·√h/s + u⌋           the code; L = 255 or 15, u uniform in [0, 1)
    h = (k·(s/L))²             what is decoded, never negative

The root is what is rounded because h spans twice as many decades as it: a linear code would leave most
coordinates at 0. The mean of √h is what it was; h itself comes out larger, by (s/L)²/4 at most on average. An
h far below (s/L)² is mostly 0 in one update, where a step would go its full clip: combining many workers and
β2 make it small instead, as does h itself. A tensor that holds no root of 2⁻⁵⁵ is one of zeros, with s = 0.

Source: none; ours.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.encodings.constants import NO_CONSTANTS, Constants, require_constants
from protocol.encodings.integers import DITHERED_PARTS, Codes, Float32Array, OfCodes
from protocol.errors import MalformedTensorMessage, NotFinite

LEAST_SCALE, MOST_SCALE = 2.0**-55, 2.0**63
"""Between them every value that a code can have is a normal float32."""


@dataclass(frozen=True)
class SquareRoot(OfCodes):
    """Values in [0, scale²] as unsigned codes of their roots, rounded stochastically."""

    bundle: str | None = "hessian"
    constants: tuple[str, ...] = ("scale",)

    def check_constants(self, constants: Constants) -> None:
        """Raises: MalformedTensorMessage: they are not those of this encoding."""
        require_constants(self.name, {"scale": (0.0, MOST_SCALE)}, constants)
        if 0 < constants["scale"] < LEAST_SCALE:
            raise MalformedTensorMessage(f"{self.name}: scale is neither 0 nor at least {LEAST_SCALE:g}")

    def constants_for(self, values: Float32Array) -> Constants:
        """The largest root.

        Raises:
            NotFinite: a value is NaN, or too large for this encoding.
        """
        with np.errstate(invalid="ignore"):  # NaN of any bits is refused by name
            largest = float(np.sqrt(values.max(initial=0), dtype=np.float32))
        if not largest <= MOST_SCALE:
            raise NotFinite(f"{self.name}: a value is not finite, or too large for this encoding")
        return {"scale": largest if largest >= LEAST_SCALE else 0.0}

    def encode(self, values: Float32Array, constants: Constants = NO_CONSTANTS, seed: int = 0) -> memoryview:
        """Give the payload bytes of `values`; what is beyond the scale becomes it.

        Raises:
            NotFinite: a value is NaN, infinite or negative.
        """
        constants = constants or self.constants_for(values)
        self.check_constants(constants)
        scale = constants["scale"]
        factor = np.float32(self.codes.highest * DITHERED_PARTS / scale if scale else 0)

        def scaled(some: Float32Array, out: Float32Array) -> None:
            with np.errstate(over="ignore", invalid="ignore"):  # NaN is refused by name
                np.sqrt(some, out=out)
                out *= factor

        return self.codes.write(values, scaled, seed)

    def decode(self, payload: memoryview, out: Float32Array, constants: Constants = NO_CONSTANTS) -> None:
        """Write the elements of one `byte_range` into `out`, shape (stop - start,).

        Raises:
            MalformedTensorMessage: bits are set that belong to no element, or to a tensor of zeros.
        """
        if not constants["scale"] and np.frombuffer(payload, dtype=np.uint8).any():
            raise MalformedTensorMessage(f"{self.name}: with a scale of 0 all codes are 0")
        factor = np.float32(constants["scale"] / self.codes.highest)

        def unscale(codes: Float32Array) -> None:
            codes *= factor
            np.multiply(codes, codes, out=codes)

        self.codes.read(payload, out, unscale)

    def rounding(
        self, values: npt.NDArray[np.float64], constants: Constants = NO_CONSTANTS
    ) -> npt.NDArray[np.float64]:
        """How far encoding can have moved each value: its root by a level."""
        level = max(constants["scale"] / self.codes.highest, LEAST_SCALE) * (1 + 2.0**-12)
        moved: npt.NDArray[np.float64] = level * (2 * np.sqrt(np.abs(values)) + level)
        return moved


SQRT_INT8 = SquareRoot("sqrt_int8", Codes(8, signed=False))
SQRT_INT4 = SquareRoot("sqrt_int4", Codes(4, signed=False))
