# SPDX-License-Identifier: Apache-2.0
"""Multi-Krum: the mean of the m rows that Krum scores lowest (`krum.py`); those that tie with the last share.

    m = K − f − 2 = ⌊K/2⌋, at least 1

Half of the workers are heard where Krum hears one, which averages out more of their noise; what is chosen
lies near honest rows while fewer than half are wild.

Source: Blanchard et al. 2017 (arXiv 1703.02757), Multi-Krum; the paper leaves m open, from 1 (Krum) to K
(the mean). Differs: m is fixed, to as many rows as each was scored by: every wild row that is far from the
others is then left out, from three workers on. One, two and three workers: as Krum. Weights are not used,
for Krum's reasons.
"""

from ps_service.combiners.base import Measures, Values
from ps_service.combiners.krum import lowest_scores, neighbours


def multi_krum(products: Measures, weights: Values) -> Values:
    """Equal weights for the rows of lowest score, 0 for all others; `weights` are ignored.

    Args: products: the rows' inner products, shape (K, K).
    """
    return lowest_scores(products, max(neighbours(len(products)), 1))
