# SPDX-License-Identifier: Apache-2.0
"""Fed-Sophia's local step, in the paper's form and in the shared form.

    m ← β1·m + (1−β1)·g
    h ← β2·h + (1−β2)·ĥ                      when an estimate ĥ is given
    θ ← θ − η·λ·θ
    θ ← θ − η·clip(m / max(h, ε), ρ)

Paper form (`Sophia`): ĥ is given when t mod τ = 0, where t counts this worker's local steps in the run
from 0; m and h start at zero and stay on the worker between rounds.
Shared form (`SophiaShared`): m starts each round at −ρ·q̄·max(h, ε) with the server's direction q̄ and
Hessian h; ĥ is given at the round's first step when the server wants it, and is uploaded as it is.
Workers keep nothing.

Source: Fed-Sophia (arXiv 2406.06655), Algorithm 1; Sophia, Liu et al. 2023 (arXiv 2305.14342),
Algorithm 3. The shared form is ours; near it: FedPAC (arXiv 2602.19271), FedCM (arXiv 2106.10874).

Where we differ from Sophia: it moves by lr·clip(m / max(γ·h, ε), 1), which is our step with η·ρ = lr
and ρ = γ; so a published rate is our η·ρ, and a published decay is our λ/ρ. ĥ already holds
its factor B. There is no bias correction: h starts small, and the clip holds the first steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch

from protocol.errors import InvalidMessage
from worker.optimizers.base import KeptTensors, PlainSteps, RoundStart, Tensors, averaged, setting, zeros_like


@dataclass(frozen=True)
class SophiaSettings:
    """The numbers of the step."""

    learning_rate: float
    """η."""
    clip_bound: float
    """ρ."""
    momentum_decay: float
    """β1."""
    hessian_decay: float
    """β2."""
    weight_decay: float
    """λ."""
    epsilon: float
    """ε."""

    @classmethod
    def of(cls, settings: Mapping[str, float]) -> "SophiaSettings":
        """Raises: InvalidMessage: a setting is missing."""
        return cls(**{field.name: setting(settings, field.name) for field in fields(cls)})


@dataclass(frozen=True)
class SophiaState:
    """m, h and the number of steps done."""

    step: int
    momentum: Tensors
    hessian: Tensors


@torch.no_grad()
def sophia_step(
    parameters: Tensors,
    gradients: Tensors,
    state: SophiaState,
    settings: SophiaSettings,
    hessian_estimate: Tensors | None,
) -> SophiaState:
    """One local step: moves `parameters` in place and returns the next state; the old one is unchanged."""
    momentum = averaged(state.momentum, gradients, settings.momentum_decay)
    hessian = state.hessian
    if hessian_estimate is not None:
        hessian = averaged(hessian, hessian_estimate, settings.hessian_decay)
    # θ − ηλ·θ, not θ·(1 − ηλ): in float32 that factor is off by up to 2⁻²⁵, the same way at every step,
    # and uses up what the bound allows for rounding
    if settings.weight_decay:
        torch._foreach_add_(parameters, parameters, alpha=-settings.learning_rate * settings.weight_decay)
    moves = torch._foreach_clamp_min(hessian, settings.epsilon)
    moves = torch._foreach_div(momentum, moves)
    torch._foreach_clamp_min_(moves, -settings.clip_bound)
    torch._foreach_clamp_max_(moves, settings.clip_bound)
    torch._foreach_add_(parameters, moves, alpha=-settings.learning_rate)
    return SophiaState(state.step + 1, momentum, hessian)


def clip_fraction(state: SophiaState, settings: SophiaSettings) -> float:
    """Share of coordinates that the clip holds back: |m| > ρ·max(h, ε)."""
    pairs = zip(state.momentum, state.hessian, strict=True)
    clipped = [(m.abs() > h.clamp_min(settings.epsilon) * settings.clip_bound).sum() for m, h in pairs]
    return sum(int(count) for count in clipped) / sum(m.numel() for m in state.momentum)


@dataclass(frozen=True)
class Sophia(PlainSteps):
    """The paper's form: the whole state stays on the worker."""

    settings: SophiaSettings
    hessian_every: int
    """τ."""
    state: SophiaState

    @classmethod
    def begin(cls, settings: Mapping[str, float], start: RoundStart) -> "Sophia":
        hessian_every = int(setting(settings, "hessian_every"))
        if hessian_every < 1:
            raise InvalidMessage(f"settings: hessian_every is {hessian_every}, expected 1 or more")
        if start.kept is None:
            state = SophiaState(0, zeros_like(start.parameters), zeros_like(start.parameters))
        else:
            bundles = start.kept.bundles
            state = SophiaState(start.kept.step, bundles["momentum"], bundles["hessian"])
        return cls(SophiaSettings.of(settings), hessian_every, state)

    @property
    def wants_hessian(self) -> bool:
        return self.state.step % self.hessian_every == 0

    def step(self, parameters: Tensors, gradients: Tensors, curvature: Tensors | None) -> "Sophia":
        return replace(self, state=sophia_step(parameters, gradients, self.state, self.settings, curvature))

    def kept(self) -> KeptTensors | None:
        bundles = {"momentum": self.state.momentum, "hessian": self.state.hessian}
        return KeptTensors(self.state.step, bundles)

    def metrics(self) -> dict[str, float]:
        return {"clip_fraction": clip_fraction(self.state, self.settings)}


@dataclass(frozen=True)
class SophiaShared(PlainSteps):
    """The shared form: curvature and direction come from the server, and nothing is kept."""

    settings: SophiaSettings
    hessian_wanted: bool
    state: SophiaState
    estimate: Tensors | None = None
    """ĥ of this round's first step, raw."""

    @classmethod
    def begin(cls, settings: Mapping[str, float], start: RoundStart) -> "SophiaShared":
        parsed = SophiaSettings.of(settings)
        hessian = start.shared_or_zeros("hessian")
        momentum = tuple(
            -parsed.clip_bound * direction * h.clamp_min(parsed.epsilon)
            for direction, h in zip(start.shared_or_zeros("direction"), hessian, strict=True)
        )
        return cls(parsed, "hessian" in start.bundles_wanted, SophiaState(0, momentum, hessian))

    @property
    def wants_hessian(self) -> bool:
        return self.hessian_wanted and self.state.step == 0

    def step(self, parameters: Tensors, gradients: Tensors, curvature: Tensors | None) -> "SophiaShared":
        state = sophia_step(parameters, gradients, self.state, self.settings, curvature)
        return replace(self, state=state, estimate=self.estimate or curvature)

    def uploads(self) -> Mapping[str, Tensors]:
        return {} if self.estimate is None else {"hessian": self.estimate}

    def metrics(self) -> dict[str, float]:
        return {"clip_fraction": clip_fraction(self.state, self.settings)}
