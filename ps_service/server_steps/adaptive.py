# SPDX-License-Identifier: Apache-2.0
"""What the adaptive server steps have in common; they differ in how the second moment v grows.

    m ← b1·m + (1−b1)·Δ̄               b1 = β1^s;  s: the share, 1 but in asynchronous runs
    v ← as the step says               v starts at ε²
    θ ← θ + s·η·m / (√v + ε)

Source: Reddi et al. 2021 (arXiv 2003.00295), Algorithm 2. The paper's τ is our ε, `epsilon`; its x_t is θ,
its Δ_t is Δ̄, the combined delta as the run weighs it. There is no bias correction, as in the paper.
Where we differ: the share is ours. With it the moments span as many updates as in a synchronous run, and in
the steady state 1/s steps move θ as far as one of those would.
"""

from collections.abc import Callable, Mapping

import numpy as np

from protocol.baselines import FedOptHyperparameters
from ps_service.server_steps.base import Chunk, StepContext, blend

SecondMoment = Callable[[Chunk, Chunk, StepContext], Chunk]
"""(v, Δ̄⊙Δ̄, context) → the next v; nothing is changed in place."""


def adaptive_step(
    state: Mapping[str, Chunk],
    combined: Mapping[str, Chunk],
    context: StepContext,
    next_second_moment: SecondMoment,
) -> Mapping[str, Chunk]:
    """Give `params`, `momentum` and `second_moment` after the step."""
    hyperparameters = context.hyperparameters
    assert isinstance(hyperparameters, FedOptHyperparameters)
    delta, epsilon = combined["delta"], np.float32(hyperparameters.epsilon)
    momentum = blend(state["momentum"], delta, context.kept(hyperparameters.momentum_decay))
    # an absent bundle is zeros, and a second moment that has begun stays above zero
    begun = np.where(state["second_moment"] > 0, state["second_moment"], epsilon * epsilon)
    second_moment = next_second_moment(begun, delta * delta, context)
    scale: Chunk = np.sqrt(second_moment)
    rate = np.float32(context.share * hyperparameters.server_learning_rate)
    return {
        "params": state["params"] + rate * momentum / (scale + epsilon),
        "momentum": momentum,
        "second_moment": second_moment,
    }
