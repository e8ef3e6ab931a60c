# SPDX-License-Identifier: Apache-2.0
"""Mean of updates of bounded length: Σ_k w_k·min(1, M/‖x_k‖)·x_k.

    M = the median of ‖x_k‖ over this round's workers; of an even number, the lower of the two in the middle

The result is never longer than M, which is no longer than an honest update while at most half of the
workers are wild. Their direction is not looked at: this bounds what boosted updates do, not what wrong ones
do.

Source: Sun et al. 2019 (arXiv 1911.07963), norm thresholding of updates. Differs: the threshold is the
round's own median, where the paper sets a number: lengths shrink as a run converges and differ between
tasks. One worker's update is unchanged; of two, the longer is cut to the length of the shorter. If half of
the updates are zero, the result is. Weights are used, as in the mean: whatever a worker claims, the result
is no longer than M. The median itself does not heed them.
"""

import numpy as np

from ps_service.combiners.base import Measures, Values


def norm_bounded(squared_lengths: Measures, weights: Values) -> Values:
    """The weights, smaller for rows longer than the median.

    Args: squared_lengths: of the rows, shape (K,).
    """
    lengths = np.sqrt(squared_lengths)
    bound = np.sort(lengths)[(len(lengths) - 1) // 2]
    factors = np.ones(len(lengths))
    np.divide(bound, lengths, out=factors, where=lengths > bound)
    return (weights * factors).astype(np.float32)
