# SPDX-License-Identifier: Apache-2.0
"""SGD that is drawn back to where the round began, the local half of FedProx.

    θ ← θ − η·(g + μ·(θ − θ_0))

Source: Li et al. 2018 (arXiv 1812.06127), Algorithm 2: the gradient of its h_k(w; w^t). Where we differ: a
fixed number of SGD steps stands for the paper's γ-inexact solution, as in its own experiments; workers that
do fewer steps are not dropped, nor are they here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from worker.optimizers.base import PlainSteps, RoundStart, Tensors, copies_of, setting


@dataclass(frozen=True)
class Proximal(PlainSteps):
    """Its rate, how strongly it is drawn back, and where to."""

    learning_rate: float
    proximal_weight: float
    """μ."""
    start: Tensors
    """θ_0."""

    @classmethod
    def begin(cls, settings: Mapping[str, float], start: RoundStart) -> "Proximal":
        learning_rate = setting(settings, "learning_rate")
        return cls(learning_rate, setting(settings, "proximal_weight"), copies_of(start.parameters))

    @torch.no_grad()
    def step(self, parameters: Tensors, gradients: Tensors, curvature: Tensors | None) -> "Proximal":
        away = torch._foreach_sub(parameters, self.start)
        moves = torch._foreach_add(gradients, away, alpha=self.proximal_weight)
        torch._foreach_add_(parameters, moves, alpha=-self.learning_rate)
        return self
