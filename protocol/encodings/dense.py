# SPDX-License-Identifier: Apache-2.0
"""Dense encodings: every value as one little-endian float, in C order.

`f32` is the tensor as it is; `bf16` and `f16` halve its bytes, rounding to nearest, ties to even.
Decoding always gives float32: sums are taken there.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt

from protocol.encodings.constants import NO_CONSTANTS, Constants, require_constants
from protocol.errors import NotFinite

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Dense:
    """One float type, stored as it is."""

    name: str
    dtype: np.dtype[np.generic]
    half_ulp: float
    """Largest rounding error relative to |value|; 0 where nothing is rounded."""
    smallest_half_ulp: float
    """Largest rounding error among the subnormal numbers, absolute."""
    bundle: str | None = None
    group: int = 1
    constants: tuple[str, ...] = ()

    def size_bytes(self, num_elements: int) -> int:
        return num_elements * self.dtype.itemsize

    def byte_range(self, start: int, stop: int) -> tuple[int, int]:
        """Which payload bytes hold the elements start … stop-1."""
        return start * self.dtype.itemsize, stop * self.dtype.itemsize

    def check_constants(self, constants: Constants) -> None:
        """Raises: MalformedTensorMessage: there are any."""
        require_constants(self.name, {}, constants)

    def constants_for(self, values: Float32Array) -> Constants:
        return NO_CONSTANTS

    def encode(self, values: Float32Array, constants: Constants = NO_CONSTANTS, seed: int = 0) -> memoryview:
        """Give the payload bytes of `values`: a view, not a copy, where nothing has to change.

        Raises:
            NotFinite: a finite value is too large for this encoding.
        """
        contiguous = np.ascontiguousarray(values, dtype="<f4")
        if self.name == "f32":
            encoded: npt.NDArray[np.generic] = contiguous
        else:
            with np.errstate(over="ignore", invalid="ignore"):  # the next line says it by name
                encoded = contiguous.astype(self.dtype)
            if not np.isfinite(encoded.astype(np.float32)).all():
                raise NotFinite(f"{self.name}: a value is not finite, or too large for this encoding")
        return encoded.reshape(-1).view(np.uint8).data

    def decode(self, payload: memoryview, out: Float32Array, constants: Constants = NO_CONSTANTS) -> None:
        """Write the elements of one `byte_range` into `out`, shape (stop - start,)."""
        out[:] = np.frombuffer(payload, dtype=self.dtype)

    def rounding(
        self, values: npt.NDArray[np.float64], constants: Constants = NO_CONSTANTS
    ) -> npt.NDArray[np.float64]:
        """How far encoding can have moved each value, shape of `values`; used by the bound."""
        return np.maximum(np.abs(values) * self.half_ulp, self.smallest_half_ulp)


F32 = Dense("f32", np.dtype("<f4"), half_ulp=0.0, smallest_half_ulp=0.0)
BF16 = Dense("bf16", np.dtype(ml_dtypes.bfloat16), half_ulp=2.0**-8, smallest_half_ulp=2.0**-134)
F16 = Dense("f16", np.dtype("<f2"), half_ulp=2.0**-11, smallest_half_ulp=2.0**-25)
