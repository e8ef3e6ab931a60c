# SPDX-License-Identifier: Apache-2.0
"""Lengths and inner products of whole rows, the same to the bit on every machine.

    x_k = s_k·z_k + rounding     in each block of 4096 coordinates: z_k whole numbers, |z_k| ≤ 2^20; s_k the
                                 power of two that the largest value of this row in this block asks for
    ⟨x_i, x_j⟩ = Σ_blocks s_i·s_j·⟨z_i, z_j⟩

A sum of whole numbers is exact while it stays below 2^53: ⟨z_i, z_j⟩ is at most 4096·2^40 = 2^52. So
neither a chunk's width nor a number of threads nor a BLAS can change it, in whatever order it adds. Blocks
begin where a tensor begins, hold 4096 coordinates but for the tensor's last, and are added one after
another.

Rounding moves a value by at most 2^-20 of the largest one of its row in its block, so a row by at most
√4096·2^-20 = 2^-14 of its length, and by some millionths where no single value outweighs a block. Each row
has a scale of its own: a wild row is seen as exactly as the others, and makes nobody else's distances
coarser.

Source: none; ours. Splitting values so that a BLAS sums them without rounding is known from accurate matrix
products. Rows are finite: admission sees to it.
"""

import numpy as np
import numpy.typing as npt

from ps_service.combiners.base import Measures, Rows

BLOCK = 4096
"""Coordinates that are measured together."""
BITS = 20
"""2·BITS + log2(BLOCK) is at most 52: with the sign, what a float64 holds without rounding."""


def squared_lengths(rows: Rows) -> Measures:
    """‖x_k‖² over these coordinates, shape (K,)."""
    numbers, scales = _whole_numbers(rows)
    np.multiply(numbers, numbers, out=numbers)
    squares: Measures = numbers.sum(axis=1) * scales * scales
    return squares


def inner_products(rows: Rows) -> Measures:
    """⟨x_i, x_j⟩ over these coordinates, shape (K, K); symmetric."""
    numbers, scales = _whole_numbers(rows)
    products: Measures = (numbers @ numbers.T) * scales[:, None] * scales
    return products


def squared_distances(products: Measures) -> Measures:
    """‖x_i − x_j‖² of inner products, shape (K, K): never negative, and 0 between equal rows."""
    lengths = products.diagonal()
    return np.maximum(lengths[:, None] + lengths - 2 * products, 0.0)


def _whole_numbers(rows: Rows) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(z, shape (K, n); s, shape (K,)), such that s·z are the rows."""
    assert rows.shape[1] <= BLOCK
    largest = np.maximum(rows.max(axis=1, initial=0), -rows.min(axis=1, initial=0))
    _, exponents = np.frexp(largest)
    numbers = rows.astype(np.float64)
    numbers *= np.ldexp(1.0, BITS - exponents)[:, None]
    np.rint(numbers, out=numbers)
    return numbers, np.ldexp(1.0, exponents - BITS)
