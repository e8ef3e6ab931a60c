# SPDX-License-Identifier: Apache-2.0
"""Menu: many workers' values → one. To add one, copy `mean.py` and add a line to `COMBINERS`.

Duties of a combiner: rows come in slot order; coordinates are independent of each other; sums are
element-wise multiply-adds, row after row, into a float32 accumulator. No BLAS, einsum or sum over an
axis: their order of addition changes with the width of a chunk, and with it the bits of the result.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from ps_service.combiners.mean import mean
from ps_service.combiners.trimmed_mean import trimmed_mean

Rows = npt.NDArray[np.float32]
"""Shape (K, n): one row a worker, in slot order."""
Values = npt.NDArray[np.float32]
"""Shape (n,)."""


class Combiner(Protocol):
    """A function from rows and weights to values."""

    def __call__(self, rows: Rows, weights: Values) -> Values:
        """Combine `rows`, shape (K, n), with `weights`, shape (K,) and sum 1; `rows` may be overwritten."""
        ...


COMBINERS: dict[str, Combiner] = {
    "mean": mean,
    "trimmed_mean": trimmed_mean,
}
