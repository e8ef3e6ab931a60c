# SPDX-License-Identifier: Apache-2.0
"""SGD corrected by control variates, the local half of SCAFFOLD.

    θ ← θ − η·(g + c − c_i)
    c_i⁺ = (1/J)·Σ g                     upload c_i⁺ − c_i as `control_delta`, keep c_i⁺ as `control`

c is the server's `control`; c_i stays on the worker between rounds and starts at zero.

Source: Karimireddy et al. 2020 (arXiv 1910.06378), Algorithm 1, option II. Where we differ: the paper writes
c_i⁺ = c_i − c + (θ_0 − θ_J)/(J·η). Put in the steps, and that is the mean of the gradients: it is computed as
such, where the difference of parameters would lose the digits that a short step leaves.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from worker.optimizers.base import KeptTensors, PlainSteps, RoundStart, Tensors, setting, zeros_like


@dataclass(frozen=True)
class Scaffold(PlainSteps):
    """Its rate, its control variate before the round, and the gradients of the round."""

    learning_rate: float
    control: Tensors
    """c_i."""
    correction: Tensors
    """c − c_i."""
    steps_before: int
    steps: int
    """J, so far."""
    sum_of_gradients: Tensors

    @classmethod
    def begin(cls, settings: Mapping[str, float], start: RoundStart) -> "Scaffold":
        zeros, kept = zeros_like(start.parameters), start.kept
        control = zeros if kept is None else kept.bundles["control"]
        correction = tuple(torch._foreach_sub(start.shared_or_zeros("control"), control))
        before = 0 if kept is None else kept.step
        return cls(setting(settings, "learning_rate"), control, correction, before, 0, zeros)

    @torch.no_grad()
    def step(self, parameters: Tensors, gradients: Tensors, curvature: Tensors | None) -> "Scaffold":
        moves = torch._foreach_add(gradients, self.correction)
        torch._foreach_add_(parameters, moves, alpha=-self.learning_rate)
        total = tuple(torch._foreach_add(self.sum_of_gradients, gradients))
        return replace(self, steps=self.steps + 1, sum_of_gradients=total)

    def uploads(self) -> Mapping[str, Tensors]:
        return {"control_delta": tuple(torch._foreach_sub(self._next_control(), self.control))}

    def kept(self) -> KeptTensors | None:
        return KeptTensors(self.steps_before + self.steps, {"control": self._next_control()})

    def _next_control(self) -> Tensors:
        return tuple(torch._foreach_div(self.sum_of_gradients, float(self.steps)))
