# SPDX-License-Identifier: Apache-2.0
"""The contract of a combiner.

    measure(block of rows)         → measures     optional, before anything is combined: what a block of
                                                  coordinates says of the rows; blocks are added up in order
    decide(measures, weights)      → weights      optional: what each row counts for
    combine(chunk of rows, weights) → values      coordinates are independent of each other

Rows come in slot order, one a worker. Weights come as the run says (`weighting`, staleness) and sum to 1; a
combiner that protects from workers says whether it heeds them. What `decide` gives need not sum to 1. It is
decided once for each bundle that workers send, and holds for what a server step derives from it too.

Sums over coordinates are made in `measures.py` and nowhere else. All other sums are element-wise
multiply-adds, row after row: no BLAS, einsum or sum over an axis, whose order of addition, and with it the
bits of the result, changes with the width of a chunk.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float32]
"""Shape (K, n): one row a worker, in slot order."""
Values = npt.NDArray[np.float32]
"""Shape (n,), or (K,) where they are weights."""
RowsInTurn = Iterable[Values]
"""The same rows one after another, each shape (n,) and of no further use once the next is asked for."""
Measures = npt.NDArray[np.float64]
"""Shape (K,) or (K, K): of one block of coordinates, or added up over all of them."""


class Combine(Protocol):
    """Rows and weights → values."""

    def __call__(self, rows: Rows, weights: Values, /) -> Values:
        """Combine `rows`, shape (K, n) with n from 0 on, with `weights`, shape (K,); may overwrite `rows`."""
        ...


class CombineInTurn(Protocol):
    """A combiner that asks for each row once, in order, so that no two need be in memory."""

    def __call__(self, rows: RowsInTurn, weights: Values, /) -> Values:
        """Combine at least one row, with `weights`, shape (K,); changes no row."""
        ...


class Measure(Protocol):
    """A block of rows → what is to be known of it."""

    def __call__(self, rows: Rows, /) -> Measures:
        """Measure `rows`, shape (K, n) with n at most `measures.BLOCK`; changes nothing."""
        ...


class Decide(Protocol):
    """What was measured of whole rows → what each counts for."""

    def __call__(self, measures: Measures, weights: Values, /) -> Values:
        """Give a weight a row, shape (K,), for any K from 1 on."""
        ...


@dataclass(frozen=True)
class Weighing:
    """How whole rows are weighed before they are combined: one pass over all coordinates."""

    measure: Measure
    decide: Decide


@dataclass(frozen=True)
class Combiner:
    """Many workers' values → one."""

    combine: Combine
    weighing: Weighing | None = None
    """None: nothing but the values at a coordinate decides what comes out there."""
    in_turn: CombineInTurn | None = None
    """The same as `combine`, to the bit, of rows in turn; None where all are needed at once."""
