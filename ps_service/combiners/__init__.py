# SPDX-License-Identifier: Apache-2.0
"""Menu: many workers' values → one. To add one, copy `mean.py` and add a line to `COMBINERS`.

One that has to see whole updates before it can weigh them, as `norm_bounded.py`, names what is measured of
them and leaves the combining to the mean; the duties of both are told in `base.py`.
"""

from ps_service.combiners.base import Combiner, Weighing
from ps_service.combiners.geometric_median import geometric_median
from ps_service.combiners.krum import krum
from ps_service.combiners.mean import mean
from ps_service.combiners.measures import inner_products, squared_lengths
from ps_service.combiners.median import median
from ps_service.combiners.multi_krum import multi_krum
from ps_service.combiners.norm_bounded import norm_bounded
from ps_service.combiners.trimmed_mean import trimmed_mean
from ps_service.combiners.winsorized_mean import winsorized_mean

__all__ = ["COMBINERS", "Combiner", "Weighing"]

COMBINERS: dict[str, Combiner] = {
    "mean": Combiner(mean, in_turn=mean),
    "trimmed_mean": Combiner(trimmed_mean),
    "winsorized_mean": Combiner(winsorized_mean),
    "median": Combiner(median),
    "krum": Combiner(mean, Weighing(inner_products, krum), mean),
    "multi_krum": Combiner(mean, Weighing(inner_products, multi_krum), mean),
    "geometric_median": Combiner(mean, Weighing(inner_products, geometric_median), mean),
    "norm_bounded": Combiner(mean, Weighing(squared_lengths, norm_bounded), mean),
}
