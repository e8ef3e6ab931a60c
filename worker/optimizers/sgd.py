# SPDX-License-Identifier: Apache-2.0
"""Stochastic gradient descent, the local half of FedAvg.

    θ ← θ − η·g

Source: McMahan et al. 2017 (arXiv 1602.05629), ClientUpdate of Algorithm 1. Where we differ: batches are
drawn with replacement for a number of steps, where the paper makes passes over shuffled data.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from worker.optimizers.base import KeptTensors, RoundStart, Tensors, setting


@dataclass(frozen=True)
class Sgd:
    """Plain SGD: nothing but its rate."""

    learning_rate: float

    @classmethod
    def begin(cls, settings: Mapping[str, float], start: RoundStart) -> "Sgd":
        return cls(setting(settings, "learning_rate"))

    @property
    def wants_hessian(self) -> bool:
        return False

    @torch.no_grad()
    def step(self, parameters: Tensors, gradients: Tensors, hessian_estimate: Tensors | None) -> "Sgd":
        torch._foreach_add_(parameters, gradients, alpha=-self.learning_rate)
        return self

    def uploads(self) -> Mapping[str, Tensors]:
        return {}

    def kept(self) -> KeptTensors | None:
        return None

    def metrics(self) -> dict[str, float]:
        return {}
