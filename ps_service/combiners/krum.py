# SPDX-License-Identifier: Apache-2.0
"""Krum: the one update that has half of the others nearest to it.

    score(i) = Σ ‖x_i − x_j‖²     over the K − f − 2 rows j ≠ i nearest to i
    result   = the row of the lowest score; the mean of those rows where several have it

f, how many workers may be wild, is the greatest number with 2f + 2 < K: then K − f − 2 is ⌊K/2⌋. While
fewer than half of the rows are wild, what is chosen has a score no worse than an honest one's, so it lies
near an honest row; far rows are never chosen.

Source: Blanchard et al. 2017 (arXiv 1703.02757), the definition of Krum. Differs: f is not set by the user;
and equal scores share, where the paper takes the smallest identifier, so that no slot is preferred. They
share always with two workers (result: their mean) and with three (the mean of the two nearest to each
other); with one, the result is its row. Weights are not used: the rule chooses among workers, and a worker
that claims many examples must not be chosen for it. A stale update is chosen if it is where the others are.
"""

import math

import numpy as np

from ps_service.combiners.base import Measures, Values
from ps_service.combiners.measures import squared_distances


def krum(products: Measures, weights: Values) -> Values:
    """1 for the row of the lowest score, 0 for all others; `weights` are ignored.

    Args: products: the rows' inner products, shape (K, K).
    """
    return lowest_scores(products, 1)


def lowest_scores(products: Measures, num_chosen: int) -> Values:
    """Equal weights, sum 1, for so many rows of lowest score and for those that tie with the last of them."""
    scores = np.array(_scores(squared_distances(products)))
    chosen = scores <= np.sort(scores)[num_chosen - 1]
    weights: Values = (chosen / chosen.sum()).astype(np.float32)
    return weights


def neighbours(num_rows: int) -> int:
    """How many nearest rows a row is judged by: K − f − 2 for the greatest f with 2f + 2 < K."""
    return num_rows // 2


def _scores(distances: Measures) -> list[float]:
    num_rows = len(distances)
    np.fill_diagonal(distances, np.inf)  # sorts last: a row is no neighbour of itself
    distances.sort(axis=1)
    # fsum rounds once, at the end: equal neighbours make equal scores, whatever the order of the rows
    return [math.fsum(row[: neighbours(num_rows)]) for row in distances]
