# SPDX-License-Identifier: Apache-2.0
"""Weighted mean: Σ_k w_k·x_k, added in slot order.

Source: McMahan et al. 2017 (arXiv 1602.05629), Algorithm 1, the server's sum. Differs: the weights are
the run's choice; the paper's n_k/n is `weighting = "num_examples"`.
"""

import numpy as np

from ps_service.combiners.base import RowsInTurn, Values


def mean(rows: RowsInTurn, weights: Values) -> Values:
    """The weighted mean of the rows, at least one, shape (n,); they stay as they are."""
    in_turn = zip(rows, weights, strict=True)
    first, weight = next(in_turn)
    total: Values = np.multiply(first, weight)
    term = np.empty_like(total)
    for row, weight in in_turn:
        np.multiply(row, weight, out=term)
        np.add(total, term, out=total)
    # as if the sum had begun with 0, in one pass less: what is −0 everywhere becomes 0
    total += np.float32(0)
    return total
