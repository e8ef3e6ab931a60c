# SPDX-License-Identifier: Apache-2.0
"""The server's half of FedAdam: the second moment is an average.

    v ← b2·v + (1−b2)·Δ̄⊙Δ̄             b2 = β2^s

The rest of the step, its source (Reddi et al. 2021, arXiv 2003.00295, Algorithm 2, FedAdam) and where we
differ are in `adaptive.py`.
"""

from collections.abc import Mapping

from protocol.baselines import FedAdamHyperparameters
from ps_service.server_steps.adaptive import adaptive_step
from ps_service.server_steps.base import Chunk, CombinesAsReceived, StepContext, blend


class Adam(CombinesAsReceived):
    """Moves θ, `momentum` and `second_moment`; the last two stay on the server."""

    def apply(
        self, state: Mapping[str, Chunk], combined: Mapping[str, Chunk], context: StepContext
    ) -> Mapping[str, Chunk]:
        return adaptive_step(state, combined, context, _next_second_moment)


def _next_second_moment(second_moment: Chunk, square: Chunk, context: StepContext) -> Chunk:
    assert isinstance(context.hyperparameters, FedAdamHyperparameters)
    return blend(second_moment, square, context.kept(context.hyperparameters.second_moment_decay))
