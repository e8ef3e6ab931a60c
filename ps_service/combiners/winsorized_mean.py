# SPDX-License-Identifier: Apache-2.0
"""Coordinate-wise winsorized mean: the d smallest values are raised to the next one, the d largest lowered.

    x_(1) ≤ … ≤ x_(K) sorted;  result = (1/K)·(d·x_(d+1) + Σ_{k=d+1..K−d} x_(k) + d·x_(K−d)),   d = ⌊K/5⌋

With K < 10 it is one at each end as soon as K ≥ 3: a lone wild value never passes. Up to d wild workers at a
coordinate count for no more than the others' values there.

It is for bundles of which honest values are far apart and mostly on one side, as squared gradients are: a few
workers hold most of what there is at a coordinate. Dropping them (`trimmed_mean.py`) loses that; they count
here, as the largest that enough workers vouch for.

Source: Dixon 1960, Simplified estimation from censored normal samples (Annals of Mathematical Statistics 31),
which names it after C. P. Winsor. Differs: weights are not used: a worker that claims many examples must not
weigh more in what protects from it.
"""

import numpy as np

from ps_service.combiners.base import Rows, Values

ONE_IN = 5


def pulled_in(num_rows: int) -> int:
    """d: how many values are replaced at each end."""
    return max(num_rows // ONE_IN, 1) if num_rows >= 3 else 0


def winsorized_mean(rows: Rows, weights: Values) -> Values:
    """The winsorized mean of the rows, shape (n,); `weights` are ignored. Sorts `rows` in place."""
    ends = pulled_in(len(rows))
    rows.sort(axis=0)
    rows[:ends] = rows[ends]
    rows[len(rows) - ends :] = rows[len(rows) - ends - 1]
    total = np.zeros(rows.shape[1], dtype=np.float32)
    for row in rows:
        np.add(total, row, out=total)
    total /= np.float32(len(rows))
    return total
