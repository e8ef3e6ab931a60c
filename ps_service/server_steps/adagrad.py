# SPDX-License-Identifier: Apache-2.0
"""The server's half of FedAdagrad: the second moment is a sum, so steps become shorter and shorter.

    v ← v + s·Δ̄⊙Δ̄

The rest of the step, its source (Reddi et al. 2021, arXiv 2003.00295, Algorithm 2, FedAdagrad) and where we
differ are in `adaptive.py`.
"""

from collections.abc import Mapping

import numpy as np

from ps_service.server_steps.adaptive import adaptive_step
from ps_service.server_steps.base import Chunk, CombinesAsReceived, StepContext


class Adagrad(CombinesAsReceived):
    """Moves θ, `momentum` and `second_moment`; the last two stay on the server."""

    def apply(
        self, state: Mapping[str, Chunk], combined: Mapping[str, Chunk], context: StepContext
    ) -> Mapping[str, Chunk]:
        return adaptive_step(state, combined, context, _next_second_moment)


def _next_second_moment(second_moment: Chunk, square: Chunk, context: StepContext) -> Chunk:
    grown: Chunk = second_moment + np.float32(context.share) * square
    return grown
