# SPDX-License-Identifier: Apache-2.0
"""The server's half of SCAFFOLD.

    θ ← θ + η_g·combine(Δ_i)
    c ← c + (K/N)·combine(c_i⁺ − c_i)    `control`; K: the updates, N: the workers of the run

Source: Karimireddy et al. 2020 (arXiv 1910.06378), Algorithm 1, server lines: its sum over the cohort,
divided by N, is K/N times a mean. Where we differ: workers come and go, so N is how many could have been
invited when the round was opened. c is the mean of the workers' c_i as long as every update that was received
is counted and every worker keeps its own: what an abandoned round received leaves the two apart.
"""

from collections.abc import Mapping

import numpy as np

from protocol.baselines import ScaffoldHyperparameters
from ps_service.server_steps.base import Chunk, CombinesAsReceived, StepContext


class Scaffold(CombinesAsReceived):
    """Moves θ, and `control` by what the workers' own moved."""

    def apply(
        self, state: Mapping[str, Chunk], combined: Mapping[str, Chunk], context: StepContext
    ) -> Mapping[str, Chunk]:
        hyperparameters = context.hyperparameters
        assert isinstance(hyperparameters, ScaffoldHyperparameters)
        rate = np.float32(hyperparameters.server_learning_rate)
        changed: dict[str, Chunk] = {"params": state["params"] + rate * combined["delta"]}
        if "control_delta" in combined:
            heard = len(context.steps)
            part = np.float32(heard / max(context.workers or heard, heard))
            changed["control"] = state["control"] + part * combined["control_delta"]
        return changed
