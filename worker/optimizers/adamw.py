# SPDX-License-Identifier: Apache-2.0
"""Adam with decoupled weight decay, on the worker.

    m ← β1·m + (1−β1)·g
    v ← β2·v + (1−β2)·g⊙g
    θ ← θ − η·λ·θ
    θ ← θ − η·m̂ / (√v̂ + ε)          m̂ = m/(1−β1^t),  v̂ = v/(1−β2^t)

t counts the steps since m and v were zero: over the worker's life in the run if it keeps its state, else
within the round.

Source: Loshchilov & Hutter 2017 (arXiv 1711.05101), Algorithm 2, with its schedule η_t = 1. Where we differ:
the decay is η·λ·θ, so that λ means what it means in PyTorch and in our other optimizers; the paper's is λ·θ.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch

from worker.optimizers.base import KeptTensors, PlainSteps, RoundStart, Tensors, averaged, setting, zeros_like


@dataclass(frozen=True)
class AdamWSettings:
    """The numbers of the step."""

    learning_rate: float
    """η."""
    momentum_decay: float
    """β1."""
    second_moment_decay: float
    """β2."""
    weight_decay: float
    """λ."""
    epsilon: float
    """ε."""
    keep_state: float
    """Whether m, v and t stay on the worker between rounds: not 0, or 0."""

    @classmethod
    def of(cls, settings: Mapping[str, float]) -> "AdamWSettings":
        """Raises: InvalidMessage: a setting is missing."""
        return cls(**{field.name: setting(settings, field.name) for field in fields(cls)})


@dataclass(frozen=True)
class AdamW(PlainSteps):
    """Where it stands: m, v and t."""

    settings: AdamWSettings
    steps: int
    momentum: Tensors
    second_moment: Tensors

    @classmethod
    def begin(cls, settings: Mapping[str, float], start: RoundStart) -> "AdamW":
        parsed = AdamWSettings.of(settings)
        if start.kept is None or not parsed.keep_state:
            return cls(parsed, 0, zeros_like(start.parameters), zeros_like(start.parameters))
        bundles = start.kept.bundles
        return cls(parsed, start.kept.step, bundles["momentum"], bundles["second_moment"])

    @torch.no_grad()
    def step(self, parameters: Tensors, gradients: Tensors, curvature: Tensors | None) -> "AdamW":
        settings, steps = self.settings, self.steps + 1
        momentum = averaged(self.momentum, gradients, settings.momentum_decay)
        squares = tuple(torch._foreach_mul(gradients, gradients))
        second_moment = averaged(self.second_moment, squares, settings.second_moment_decay)
        scales = torch._foreach_sqrt(second_moment)
        torch._foreach_div_(scales, math.sqrt(1 - settings.second_moment_decay**steps))
        torch._foreach_add_(scales, settings.epsilon)
        if settings.weight_decay:
            torch._foreach_add_(parameters, parameters, alpha=-settings.learning_rate * settings.weight_decay)
        rate = settings.learning_rate / (1 - settings.momentum_decay**steps)
        torch._foreach_add_(parameters, torch._foreach_div(momentum, scales), alpha=-rate)
        return replace(self, steps=steps, momentum=momentum, second_moment=second_moment)

    def kept(self) -> KeptTensors | None:
        if not self.settings.keep_state:
            return None
        return KeptTensors(self.steps, {"momentum": self.momentum, "second_moment": self.second_moment})
