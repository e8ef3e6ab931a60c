# SPDX-License-Identifier: Apache-2.0
"""The server's half of FedYogi: the second moment moves by what Δ̄⊙Δ̄ is, not by how far it is away.

    v ← v − (1−b2)·Δ̄⊙Δ̄·sign(v − Δ̄⊙Δ̄)     b2 = β2^s

The rest of the step, its source (Reddi et al. 2021, arXiv 2003.00295, Algorithm 2, FedYogi) and where we
differ are in `adaptive.py`.
"""

from collections.abc import Mapping

import numpy as np

from protocol.baselines import FedYogiHyperparameters
from ps_service.server_steps.adaptive import adaptive_step
from ps_service.server_steps.base import Chunk, CombinesAsReceived, StepContext


class Yogi(CombinesAsReceived):
    """Moves θ, `momentum` and `second_moment`; the last two stay on the server."""

    def apply(
        self, state: Mapping[str, Chunk], combined: Mapping[str, Chunk], context: StepContext
    ) -> Mapping[str, Chunk]:
        return adaptive_step(state, combined, context, _next_second_moment)


def _next_second_moment(second_moment: Chunk, square: Chunk, context: StepContext) -> Chunk:
    assert isinstance(context.hyperparameters, FedYogiHyperparameters)
    moved = np.float32(1 - context.kept(context.hyperparameters.second_moment_decay)) * square
    grown: Chunk = second_moment - moved * np.sign(second_moment - square)
    return grown
