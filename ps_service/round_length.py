# SPDX-License-Identifier: Apache-2.0
"""How long a round may take. PURE.

What an adaptive deadline follows is when a round's last update came, never how long the round was open:
a worker that does not answer would make each deadline a reason for a longer one. But what comes is cut off
by the deadline, so that a slowdown could never show in it: hence the stretch.
"""

import math
from statistics import median

from protocol.messages import RunSpec

FEWEST_FOR_A_MEDIAN = 3
LEAST_DEVIATION = 0.05
"""Of the median: rounds that all took alike leave the next one this much room, `spread` times."""


def round_length_ms(spec: RunSpec, lengths_ms: tuple[int, ...], stretch: int = 0) -> int:
    """Fixed, or median + k·MAD of the last committed rounds, doubled `stretch` times up to the ceiling."""
    adaptive = spec.adaptive_deadline
    if adaptive is None:
        return max(1, round(spec.deadline_s * 1000))
    floor_ms, ceiling_ms = adaptive.floor_s * 1000, adaptive.ceiling_s * 1000
    if len(lengths_ms) < FEWEST_FOR_A_MEDIAN:
        length_ms = spec.deadline_s * 1000
    else:
        middle = median(lengths_ms)
        deviation = max(median(abs(length - middle) for length in lengths_ms), LEAST_DEVIATION * middle)
        length_ms = min(max(middle + adaptive.spread * deviation, floor_ms), ceiling_ms)
    stretched_ms = min(math.ldexp(length_ms, stretch), ceiling_ms)
    return max(1, round(max(length_ms, stretched_ms)))
