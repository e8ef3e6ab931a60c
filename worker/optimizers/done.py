# SPDX-License-Identifier: Apache-2.0
"""The local half of DONE: a gradient in one round, an approximate Newton direction in the next.

    phase `gradient`:    g_i = mean of the J gradients at θ          uploaded as `gradient`
    phase `direction`:   d = 0;  J times: d ← d − ω·(H_i·d + g)      uploaded as `delta`

g is the server's `gradient`, the combined g_i; H_i is the Hessian of the loss at θ on one mini-batch, the
same for the whole round, of which only products with d are taken. θ moves in neither phase. Where H_i is
positive definite and ω below 2/λ_max(H_i), d goes to −H_i⁻¹·g, Newton's direction. J steps stop on the way:
along an eigenvector with eigenvalue λ they leave (1 − ω·λ)^J of it undone. Where λ is negative, d grows.

Source: Dinh et al. 2022 (arXiv 2012.05625): Richardson iteration for H_i·d = −g on every worker, then the
mean of the directions. Its α is our ω; its R iterations are our J local steps. Where we differ: the paper
analyses g_i and H_i of all of a worker's examples, ours are of J mini-batches and of one; d starts at 0. A
model that draws by itself (dropout) draws anew at every step, and its H_i is another each time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from worker.optimizers.base import Optimizer, PlainSteps, RoundStart, Tensors, setting, zeros_like


def begin(settings: Mapping[str, float], start: RoundStart) -> Optimizer:
    """Enter the phase whose bundle is wanted."""
    rate = setting(settings, "richardson_rate")
    zeros = zeros_like(start.parameters)
    if "gradient" in start.bundles_wanted:
        return MeanGradient(0, zeros)
    return Richardson(rate, start.shared_or_zeros("gradient"), zeros)


@dataclass(frozen=True)
class MeanGradient(PlainSteps):
    """Stands still, and measures where it goes down."""

    steps: int
    mean: Tensors
    """g_i, so far."""

    @torch.no_grad()
    def step(self, parameters: Tensors, gradients: Tensors, curvature: Tensors | None) -> "MeanGradient":
        steps = self.steps + 1
        return replace(self, steps=steps, mean=tuple(torch._foreach_lerp(self.mean, gradients, 1 / steps)))

    def uploads(self) -> Mapping[str, Tensors]:
        return {"gradient": self.mean}


@dataclass(frozen=True)
class Richardson(PlainSteps):
    """Solves for the direction; its Hessian is that of one mini-batch."""

    rate: float
    """ω."""
    gradient: Tensors
    """g, of all workers."""
    direction: Tensors
    """d."""

    @property
    def vector(self) -> Tensors:
        return self.direction

    @property
    def one_batch(self) -> bool:
        return True

    @torch.no_grad()
    def step(self, parameters: Tensors, gradients: Tensors, curvature: Tensors | None) -> "Richardson":
        assert curvature is not None  # it was asked for
        residual = torch._foreach_add(curvature, self.gradient)
        return replace(self, direction=tuple(torch._foreach_sub(self.direction, residual, alpha=self.rate)))

    def uploads(self) -> Mapping[str, Tensors]:
        return {"delta": self.direction}
