# SPDX-License-Identifier: Apache-2.0
"""Geometric median: the point whose distances to all updates have the smallest sum.

    z = Σ_k w_k·x_k,   w_k ∝ 1/max(ν, ‖x_k − z‖)     smoothed Weiszfeld: 100 times from w to z and back
    ‖x_k − z‖² = G_kk − 2·(G·w)_k + w·G·w            G_ij = ⟨x_i, x_j⟩

Every z is a mean of the rows, so distances to it follow from the rows' inner products: one pass over the
coordinates serves all iterations, which see K × K numbers.

    r_k      distance from x_k to its ⌊K/2⌋-th nearest row
    r        the median of r_k, of an even number the lower: no minority of wild rows can stretch it
    ν        10⁻⁶·r
    w_k      at first, ∝ 1/max(ν, r_k): a wild row begins with next to no weight

If r is 0, more than half of the rows are one and the same: that row is the geometric median, and is given.
One row gives itself, two their mean (every point between them is a geometric median). Fewer than half wild
rows move the result no farther than in proportion to the spread of the others.

Source: Pillutla et al. 2019 (arXiv 1912.13445), the smoothed Weiszfeld algorithm. Differs: ν goes with the
spread of the rows, so that scaling all updates scales the result; the start is robust, where the mean would
take one iteration for every power of K that a wild row is away; and all workers count alike, where the
paper weighs them by their examples: half of all claimed weight would do to take the result over, and claims
are free. Staleness does not weigh either.
"""

import math

import numpy as np
import numpy.typing as npt

from ps_service.combiners.base import Measures, Values
from ps_service.combiners.measures import squared_distances

ITERATIONS = 100
SMOOTHING = 1e-6
"""ν relative to the rows' spread."""

_Float64s = npt.NDArray[np.float64]


def geometric_median(products: Measures, weights: Values) -> Values:
    """What each row counts for in the geometric median, sum 1; `weights` are ignored.

    Args: products: the rows' inner products, shape (K, K).
    """
    reaches = _reaches(products)
    spread = np.sort(reaches)[(len(reaches) - 1) // 2]
    if spread == 0:
        return _shares((reaches == 0).astype(np.float64)).astype(np.float32)
    nearest = SMOOTHING * spread
    shares = _shares(1 / np.maximum(reaches, nearest))
    for _ in range(ITERATIONS):
        shares = _shares(1 / np.maximum(_distances(products, shares), nearest))
    return shares.astype(np.float32)


def _reaches(products: Measures) -> _Float64s:
    """How far each row's ⌊K/2⌋-th nearest row is, shape (K,)."""
    distances = squared_distances(products)
    np.fill_diagonal(distances, 0.0)  # a row is its own nearest, the zeroth
    distances.sort(axis=1)
    return np.sqrt(distances[:, len(products) // 2])


def _distances(products: Measures, shares: _Float64s) -> _Float64s:
    """‖x_k − z‖ for z = Σ_k shares_k·x_k, shape (K,)."""
    towards = np.zeros(len(shares))
    for row, share in zip(products, shares, strict=True):
        towards += share * row
    length = math.fsum(shares * towards)
    return np.sqrt(np.maximum(products.diagonal() - 2 * towards + length, 0.0))


def _shares(values: _Float64s) -> _Float64s:
    return values / math.fsum(values)
