# SPDX-License-Identifier: Apache-2.0
"""Coordinate-wise trimmed mean: drop the ⌊K/10⌋ smallest and the ⌊K/10⌋ largest values, average the rest.

With K < 10 the trim is one at each end as soon as K ≥ 3: a lone wild value never passes.
Source: Yin et al. 2018 (arXiv 1803.01498), Definition 2. Differs: β is fixed at 0.1, and weights are
not used: a worker that claims many examples must not weigh more in what protects from it.
"""

import numpy as np

from ps_service.combiners.base import Rows, Values

TRIM = 0.1


def trimmed(num_rows: int) -> int:
    """How many values are dropped at each end."""
    return max(int(num_rows * TRIM), 1) if num_rows >= 3 else 0


def trimmed_mean(rows: Rows, weights: Values) -> Values:
    """The trimmed mean of the rows, shape (n,); `weights` are ignored. Sorts `rows` in place."""
    drop = trimmed(len(rows))
    rows.sort(axis=0)
    kept = rows[drop : len(rows) - drop]
    total = np.zeros(rows.shape[1], dtype=np.float32)
    for row in kept:
        np.add(total, row, out=total)
    total /= np.float32(len(kept))
    return total
