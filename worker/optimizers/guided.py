# SPDX-License-Identifier: Apache-2.0
"""SGD that is guided by where all workers went last, the local half of FedCM.

    θ ← θ − η·(α·g − (1−α)·d)

d is the server's `direction`: the mean move of the last round for each unit of η, so downhill where g is
uphill. It stays the same for the whole round; workers keep nothing.

Source: Xu et al. 2021 (arXiv 2106.10874). Where we differ: our d is the paper's −Δ_t.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from worker.optimizers.base import PlainSteps, RoundStart, Tensors, setting


@dataclass(frozen=True)
class Guided(PlainSteps):
    """Its numbers and d."""

    learning_rate: float
    gradient_weight: float
    """α."""
    direction: Tensors

    @classmethod
    def begin(cls, settings: Mapping[str, float], start: RoundStart) -> "Guided":
        learning_rate = setting(settings, "learning_rate")
        return cls(learning_rate, setting(settings, "gradient_weight"), start.shared_or_zeros("direction"))

    @torch.no_grad()
    def step(self, parameters: Tensors, gradients: Tensors, curvature: Tensors | None) -> "Guided":
        rate, weight = self.learning_rate, self.gradient_weight
        torch._foreach_add_(parameters, gradients, alpha=-rate * weight)
        torch._foreach_add_(parameters, self.direction, alpha=rate * (1 - weight))
        return self
