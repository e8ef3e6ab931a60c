# SPDX-License-Identifier: Apache-2.0
"""Server momentum, the server's half of FedAvgM.

    m ← b·m + ((1−b)/(1−β))·Δ̄        b = β^s;  s: the share, 1 but in asynchronous runs: m ← β·m + Δ̄
    θ ← θ + s·η·m

Source: Hsu et al. 2019 (arXiv 1909.06335), with the server's rate η of FedOpt (Reddi et al.
2021, arXiv 2003.00295, Algorithm 1). Where we differ: Δ̄ is the combined delta as the run weighs it; the
share is ours. With a share of s the momentum spans as many updates as in a synchronous run, and 1/s steps
move θ as far as one of those would.
"""

from collections.abc import Mapping

import numpy as np

from protocol.baselines import FedAvgMHyperparameters
from ps_service.server_steps.base import Chunk, CombinesAsReceived, StepContext


class Momentum(CombinesAsReceived):
    """Moves θ along an accumulated delta, `momentum`, which stays on the server."""

    def apply(
        self, state: Mapping[str, Chunk], combined: Mapping[str, Chunk], context: StepContext
    ) -> Mapping[str, Chunk]:
        hyperparameters = context.hyperparameters
        assert isinstance(hyperparameters, FedAvgMHyperparameters)
        kept = context.kept(hyperparameters.momentum_decay)
        added = (1 - kept) / (1 - hyperparameters.momentum_decay)
        momentum = np.float32(kept) * state["momentum"] + np.float32(added) * combined["delta"]
        rate = np.float32(context.share * hyperparameters.server_learning_rate)
        return {"params": state["params"] + rate * momentum, "momentum": momentum}
