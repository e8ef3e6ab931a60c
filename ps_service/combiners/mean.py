# SPDX-License-Identifier: Apache-2.0
"""Weighted mean: Σ_k w_k·x_k, added in slot order.

Source: McMahan et al. 2017 (arXiv 1602.05629), Algorithm 1, the server's sum. Differs: the weights are
the run's choice; the paper's n_k/n is `weighting = "num_examples"`.
"""

import numpy as np

from ps_service.combiners.base import Rows, Values


def mean(rows: Rows, weights: Values) -> Values:
    """The weighted mean of the rows, shape (n,)."""
    total = np.zeros(rows.shape[1], dtype=np.float32)
    term = np.empty_like(total)
    for row, weight in zip(rows, weights, strict=True):
        np.multiply(row, weight, out=term)
        np.add(total, term, out=total)
    return total
