# SPDX-License-Identifier: Apache-2.0
"""Hyper-parameters of Fed-Sophia, in the paper's form and in the shared form."""

import math
from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field

from protocol.bound import DeltaBound
from protocol.hyperparameters import Decay, EstimatingHyperparameters, Period, Rate, WeightDecay, check_decay

MOMENTUM_WEIGHT, ASYNCHRONOUS_MOMENTUM_WEIGHT = 0.92, 0.8


class _ClippedHyperparameters(EstimatingHyperparameters):
    """What both forms of Fed-Sophia share: η = R/(J·ρ), so changing J needs no retuning."""

    max_round_step: Rate
    """R: the farthest a coordinate can move in a round."""
    clip_bound: Rate
    """ρ. Sophia's published rate is our η·ρ."""
    hessian_decay: Decay
    """β2."""
    weight_decay: WeightDecay = 1e-3
    """λ."""
    epsilon: Rate = 1e-12

    def learning_rate(self, local_steps: int) -> float:
        """η = R/(J·ρ).

        Raises:
            InvalidMessage: η·λ is 1 or more, so that one step would erase the parameters.
        """
        rate = self.max_round_step / (local_steps * self.clip_bound)
        check_decay(rate, self.weight_decay)
        return rate

    def bound(self, steps: int, local_steps: int) -> DeltaBound:
        return DeltaBound.after(
            steps,
            learning_rate=self.learning_rate(local_steps),
            clip_bound=self.clip_bound,
            weight_decay=self.weight_decay,
        )

    def optimizer_settings(self, local_steps: int) -> dict[str, float]:
        return {
            "learning_rate": self.learning_rate(local_steps),
            "clip_bound": self.clip_bound,
            "hessian_decay": self.hessian_decay,
            "weight_decay": self.weight_decay,
            "epsilon": self.epsilon,
        }


class FedSophiaHyperparameters(_ClippedHyperparameters):
    """Fed-Sophia in the paper's form (arXiv 2406.06655): m and h stay on the worker."""

    max_round_step: Rate = 0.01
    clip_bound: Rate = 10.0
    momentum_decay: Decay = 0.9
    hessian_decay: Decay = 0.99
    hessian_every: Period = 10
    """τ, in local steps over the worker's life in the run."""

    def optimizer_settings(self, local_steps: int) -> dict[str, float]:
        return super().optimizer_settings(local_steps) | {
            "momentum_decay": self.momentum_decay,
            "hessian_every": float(self.hessian_every),
        }

    def periods(self) -> Mapping[str, int]:
        return {"delta": 1}


class FedSophiaSharedHyperparameters(_ClippedHyperparameters):
    """Fed-Sophia with curvature and direction shared through the server: workers keep no state.

    Near prior art: FedPAC (arXiv 2602.19271), FedCM (arXiv 2106.10874), FedPM (arXiv 2511.09100),
    FedLion (arXiv 2402.09941).
    """

    max_round_step: Rate = 0.04
    clip_bound: Rate = 10 / 3
    momentum_weight: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Mean weight of the global direction over the steps of a round, whatever J is.

    None chooses 0.92, and 0.8 in an asynchronous run, which has momentum of its own: stale updates go on
    where the model went some versions ago (Mitliagkas et al. 2016, arXiv 1605.09774).
    """
    direction_mixing: Decay | None = None
    """c. None chooses 0.5 when a version is made by some of the workers, 0 when by all; more if by few."""
    hessian_decay: Decay = 0.9
    refresh_rounds: Period = 5
    """R_h: every so many versions the workers' fresh Hessian estimates are combined."""

    def optimizer_settings(self, local_steps: int) -> dict[str, float]:
        weight = MOMENTUM_WEIGHT if self.momentum_weight is None else self.momentum_weight
        return super().optimizer_settings(local_steps) | {
            "momentum_decay": momentum_decay_for(weight, local_steps)
        }

    def in_asynchronous_run(self) -> Self:
        if self.momentum_weight is not None:
            return self
        return self.model_copy(update={"momentum_weight": ASYNCHRONOUS_MOMENTUM_WEIGHT})

    def periods(self) -> Mapping[str, int]:
        return {"delta": 1, "hessian": self.refresh_rounds}


def momentum_decay_for(momentum_weight: float, local_steps: int) -> float:
    """Solve (1/J)·Σ_{j=1..J} β1^j = `momentum_weight` for β1 in (0, 1).

    With β1 = e^−x the mean is e^−x·(1 − e^−Jx)/(J·(1 − e^−x)), which falls as x grows: bisection finds x.
    """
    low, high = 0.0, 750.0  # e^-750 is 0 in float64
    for _ in range(60):
        x = (low + high) / 2
        mean_weight = math.exp(-x) * math.expm1(-local_steps * x) / (local_steps * math.expm1(-x))
        low, high = (low, x) if mean_weight < momentum_weight else (x, high)
    return math.exp(-high)
