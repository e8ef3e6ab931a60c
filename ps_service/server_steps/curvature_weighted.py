# SPDX-License-Identifier: Apache-2.0
"""Average deltas by curvature: where a worker's loss is steep, its delta counts for more.

    θ ← θ + combine((h_i + γ)⊙Δ_i) / (combine(h_i) + γ)

With `mean` for both combiners this is the minimum of Σ w_i·½(x − θ_i)ᵀ(diag(h_i) + γ)(x − θ_i), the
workers' losses taken as parabolas around where each ended. γ, `damping`, draws it to the plain mean.

Source: merging by a diagonal Fisher matrix, Matena & Raffel 2021 (arXiv 2111.09832); in a federation, FedPM
(arXiv 2511.09100) mixes parameters by curvature. Where we differ: h_i is the Gauss–Newton–Bartlett estimate
of a few mini-batches on the worker's way, where Fisher merging measures a model that is trained; γ is ours,
since so small a sample of a curvature is often almost zero. Synchronous runs only: a delta is
weighed by the curvature that came beside it.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from protocol.baselines import CurvatureWeightedHyperparameters
from ps_service.server_steps.base import Chunk, StepContext

LARGEST_CURVATURE = np.float32(1e18)


class CurvatureWeighted:
    """Moves θ; keeps nothing but `params`."""

    def derive(
        self, received: Mapping[str, Chunk], starts: Iterable[Chunk], context: StepContext
    ) -> Mapping[str, Chunk]:
        if "hessian" not in received:  # the contract: a step can do with deltas alone
            return {}
        # capped, both times it is used: no product of finite numbers may leave the range of float32
        np.minimum(received["hessian"], LARGEST_CURVATURE, out=received["hessian"])
        return {"weighted_delta": (received["hessian"] + _damping(context)) * received["delta"]}

    def apply(
        self, state: Mapping[str, Chunk], combined: Mapping[str, Chunk], context: StepContext
    ) -> Mapping[str, Chunk]:
        delta = combined["delta"]
        if "weighted_delta" in combined:
            delta = combined["weighted_delta"] / (combined["hessian"] + _damping(context))
        return {"params": state["params"] + delta}


def _damping(context: StepContext) -> np.float32:
    assert isinstance(context.hyperparameters, CurvatureWeightedHyperparameters)
    return np.float32(context.hyperparameters.damping)
