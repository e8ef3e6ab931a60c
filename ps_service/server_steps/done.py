# SPDX-License-Identifier: Apache-2.0
"""The server's half of DONE: what one round measures the next one goes by.

    after phase `gradient`:      g ← combine(g_i)                `gradient`; θ stays
    after phase `direction`:     θ ← θ + η_s·combine(d_i)        d_i come as `delta`; g stays

Source: Dinh et al. 2022 (arXiv 2012.05625). Where we differ: if a cohort is a part of the workers, those of
the two rounds need not be the same.
"""

from collections.abc import Mapping

import numpy as np

from protocol.baselines import DoneHyperparameters
from ps_service.server_steps.base import Chunk, CombinesAsReceived, StepContext


class Done(CombinesAsReceived):
    """Moves θ in one round of two, and `gradient` in the other."""

    def apply(
        self, state: Mapping[str, Chunk], combined: Mapping[str, Chunk], context: StepContext
    ) -> Mapping[str, Chunk]:
        hyperparameters = context.hyperparameters
        assert isinstance(hyperparameters, DoneHyperparameters)
        changed: dict[str, Chunk] = {}
        if "gradient" in combined:
            changed["gradient"] = combined["gradient"]
        if "delta" in combined:
            rate = np.float32(hyperparameters.server_learning_rate)
            changed["params"] = state["params"] + rate * combined["delta"]
        return changed
