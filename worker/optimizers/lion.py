# SPDX-License-Identifier: Apache-2.0
"""Lion with a momentum that goes through the server, the local half of FedLion.

    θ ← θ − η·sign(w·m + (1−w)·g)
    m ← β2·m + (1−β2)·g

m begins each round as the server's, and is uploaded beside the delta; workers keep nothing. w is the
paper's β1. A coordinate moves by at most η in a step, so the delta has a bound: η·J.

Source: Tang & Chang 2024 (arXiv 2402.09941). Where we differ: the paper sends the delta as the
integers (θ_0 − θ_J)/η, at most J in size; here it travels as any other delta, in the run's encoding. What is
computed is the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from worker.optimizers.base import PlainSteps, RoundStart, Tensors, averaged, setting


@dataclass(frozen=True)
class Lion(PlainSteps):
    """Its numbers and m."""

    learning_rate: float
    """η."""
    momentum_weight: float
    """w."""
    momentum_decay: float
    """β2."""
    momentum: Tensors

    @classmethod
    def begin(cls, settings: Mapping[str, float], start: RoundStart) -> "Lion":
        return cls(
            setting(settings, "learning_rate"),
            setting(settings, "momentum_weight"),
            setting(settings, "momentum_decay"),
            start.shared_or_zeros("momentum"),
        )

    @torch.no_grad()
    def step(self, parameters: Tensors, gradients: Tensors, curvature: Tensors | None) -> "Lion":
        moves = torch._foreach_sign(averaged(self.momentum, gradients, self.momentum_weight))
        torch._foreach_add_(parameters, moves, alpha=-self.learning_rate)
        return replace(self, momentum=averaged(self.momentum, gradients, self.momentum_decay))

    def uploads(self) -> Mapping[str, Tensors]:
        return {"momentum": self.momentum}
