# SPDX-License-Identifier: Apache-2.0
"""Add the combined delta: θ ← θ + s·Δ̄, where the share s is 1 but in asynchronous runs.

Source: McMahan et al. 2017 (arXiv 1602.05629), Algorithm 1; arXiv 2406.06655, the server's average of
the local models, which for the uniform mean is the same as adding the mean delta.
"""

from collections.abc import Mapping

import numpy as np

from ps_service.server_steps.base import Chunk, CombinesAsReceived, StepContext


class Average(CombinesAsReceived):
    """θ ← θ + s·Δ̄; keeps nothing but `params`."""

    def apply(
        self, state: Mapping[str, Chunk], combined: Mapping[str, Chunk], context: StepContext
    ) -> Mapping[str, Chunk]:
        return {"params": state["params"] + np.float32(context.share) * combined["delta"]}
