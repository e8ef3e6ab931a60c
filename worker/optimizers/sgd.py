# SPDX-License-Identifier: Apache-2.0
"""Stochastic gradient descent, the local half of FedAvg.

    θ ← θ − η·g

Source: McMahan et al. 2017 (arXiv 1602.05629), ClientUpdate of Algorithm 1. Where we differ: batches are
drawn with replacement for a number of steps, where the paper makes passes over shuffled data.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from worker.optimizers.base import PlainSteps, RoundStart, Tensors, setting


@dataclass(frozen=True)
class Sgd(PlainSteps):
    """Plain SGD: nothing but its rate."""

    learning_rate: float

    @classmethod
    def begin(cls, settings: Mapping[str, float], start: RoundStart) -> "Sgd":
        return cls(setting(settings, "learning_rate"))

    @torch.no_grad()
    def step(self, parameters: Tensors, gradients: Tensors, curvature: Tensors | None) -> "Sgd":
        torch._foreach_add_(parameters, gradients, alpha=-self.learning_rate)
        return self
