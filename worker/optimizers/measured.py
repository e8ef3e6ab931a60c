# SPDX-License-Identifier: Apache-2.0
"""SGD that measures the curvature it goes through, the local half of curvature-weighted averaging.

    θ ← θ − η·g
    h = mean of ĥ                        taken at local steps 0, τ, 2τ …, uploaded as `hessian`

Workers keep nothing.

Source: the local half of FedAvg (arXiv 1602.05629) and the estimate ĥ of Sophia (arXiv 2305.14342,
Algorithm 2). Where we differ from both: ĥ has no part in the step; it says how much this worker's delta is to
count, coordinate by coordinate.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from protocol.errors import InvalidMessage
from worker.optimizers.base import PlainSteps, RoundStart, Tensors, setting, zeros_like


@dataclass(frozen=True)
class Measured(PlainSteps):
    """Its numbers, and the estimates so far."""

    learning_rate: float
    hessian_every: int
    """τ."""
    steps: int
    estimates: int
    mean_estimate: Tensors

    @classmethod
    def begin(cls, settings: Mapping[str, float], start: RoundStart) -> "Measured":
        hessian_every = int(setting(settings, "hessian_every"))
        if hessian_every < 1:
            raise InvalidMessage(f"settings: hessian_every is {hessian_every}, expected 1 or more")
        return cls(setting(settings, "learning_rate"), hessian_every, 0, 0, zeros_like(start.parameters))

    @property
    def wants_hessian(self) -> bool:
        return self.steps % self.hessian_every == 0

    @torch.no_grad()
    def step(self, parameters: Tensors, gradients: Tensors, curvature: Tensors | None) -> "Measured":
        torch._foreach_add_(parameters, gradients, alpha=-self.learning_rate)
        after = replace(self, steps=self.steps + 1)
        if curvature is None:
            return after
        estimates = self.estimates + 1
        mean = torch._foreach_lerp(self.mean_estimate, curvature, 1 / estimates)
        return replace(after, estimates=estimates, mean_estimate=tuple(mean))

    def uploads(self) -> Mapping[str, Tensors]:
        return {"hessian": self.mean_estimate}
