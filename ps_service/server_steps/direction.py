# SPDX-License-Identifier: Apache-2.0
"""The server's half of FedCM: the last move is sent down for workers to follow.

    d_i = Δ_i/(η·J_i)                    J_i: the steps that worker i did
    θ ← θ + s·combine(Δ_i)               s: the share, 1 but in asynchronous runs
    d ← (1−s)·d + s·combine(d_i)         `direction`

Source: Xu et al. 2021 (arXiv 2106.10874). Where we differ: the paper's server rate is the one
that makes its step the mean of the deltas, η_g = η_l·K; d is −Δ_{t+1} of the paper; each delta is divided by
the steps of its own worker. With a share of s, d spans as many updates as in a synchronous run.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from protocol.baselines import FedCmHyperparameters
from ps_service.server_steps.base import Chunk, StepContext, blend


class Direction:
    """Moves θ, and turns `direction` to where it went."""

    def derive(
        self, received: Mapping[str, Chunk], starts: Iterable[Chunk], context: StepContext
    ) -> Mapping[str, Chunk]:
        hyperparameters = context.hyperparameters
        assert isinstance(hyperparameters, FedCmHyperparameters)
        moved = [max(steps, 1) * hyperparameters.learning_rate for steps in context.steps]
        return {"direction": received["delta"] / np.array(moved, dtype=np.float32)[:, np.newaxis]}

    def apply(
        self, state: Mapping[str, Chunk], combined: Mapping[str, Chunk], context: StepContext
    ) -> Mapping[str, Chunk]:
        return {
            "params": state["params"] + np.float32(context.share) * combined["delta"],
            "direction": blend(state["direction"], combined["direction"], 1 - context.share),
        }
