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

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from protocol.errors import InvalidMessage
from worker.optimizers.base import KeptTensors, PlainSteps, RoundStart, Tensors, setting, zeros_like
from worker.optimizers.fusing import fused_step_for

IN_CACHE = 2**17
"""So many coordinates are stepped at a time by each thread of a CPU, 512 KiB of each tensor."""


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
class ClipCount:
    """How many coordinates the clip held back over some steps: |m / max(h, ε)| > ρ."""

    held_back: Tensor
    """Scalar of int64, on the parameters' device: no step waits for it."""
    of: int
    """How many coordinates were looked at."""

    @classmethod
    def nothing_yet(cls, parameters: Tensors) -> "ClipCount":
        return cls(torch.zeros((), dtype=torch.int64, device=parameters[0].device), 0)

    @property
    def fraction(self) -> float:
        """Their share; 0 of none. Waits for the device."""
        return self.held_back.item() / self.of if self.of else 0.0


@dataclass(frozen=True)
class SophiaState:
    """m, h and the number of steps done."""

    step: int
    momentum: Tensors
    hessian: Tensors
    clips: ClipCount | None = None
    """Over the steps since it was begun; None if nobody wants to know."""


@torch.no_grad()
def sophia_step(
    parameters: Tensors,
    gradients: Tensors,
    state: SophiaState,
    settings: SophiaSettings,
    hessian_estimate: Tensors | None,
) -> SophiaState:
    """One local step: moves `parameters` in place and returns the next state; the old one is unchanged.

    It is one kernel where `fused_step_for` says so. The state's count of clips goes on, if it has one.
    """
    clips = state.clips
    held_back = None if clips is None else clips.held_back.clone()
    bundles = (parameters, gradients, state.momentum, state.hessian, hessian_estimate)
    step = fused_step_for(*bundles) or _plain_step
    estimates = hessian_estimate or (None,) * len(parameters)
    tensors = zip(parameters, gradients, state.momentum, state.hessian, estimates, strict=True)
    moved = [step(*each, held_back, **vars(settings)) for each in tensors]
    momentum, hessian = tuple(m for m, _ in moved), tuple(h for _, h in moved)
    if clips is not None and held_back is not None:
        clips = ClipCount(held_back, clips.of + sum(tensor.numel() for tensor in parameters))
    return SophiaState(state.step + 1, momentum, hessian, clips)


def _plain_step(
    theta: Tensor,
    gradient: Tensor,
    momentum: Tensor,
    hessian: Tensor,
    estimate: Tensor | None,
    held_back: Tensor | None,
    *,
    learning_rate: float,
    clip_bound: float,
    momentum_decay: float,
    hessian_decay: float,
    weight_decay: float,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """The step of one tensor on any device, and the reference: m' and h'. Adds to `held_back`."""
    new_momentum = torch.empty_like(momentum)
    new_hessian = hessian if estimate is None else torch.empty_like(hessian)
    tensors = (theta, gradient, momentum, new_momentum, hessian, new_hessian, estimate)
    for place, g, m, new_m, h, new_h, fresh in _in_cache(*tensors):
        torch.mul(m, momentum_decay, out=new_m).add_(g, alpha=1 - momentum_decay)
        if fresh is not None:
            torch.mul(h, hessian_decay, out=new_h).add_(fresh, alpha=1 - hessian_decay)
        # θ − ηλ·θ, not θ·(1 − ηλ): in float32 that factor is off by up to 2⁻²⁵, the same way at every step,
        # and uses up what the bound allows for rounding
        if weight_decay:
            place.add_(place, alpha=-learning_rate * weight_decay)
        move = new_h.clamp_min(epsilon)
        torch.div(new_m, move, out=move)
        if held_back is not None:
            held_back += _number_over(move, clip_bound)
        place.add_(move.clamp_(-clip_bound, clip_bound), alpha=-learning_rate)
    return new_momentum, new_hessian


def _in_cache(*tensors: Tensor | None) -> Iterable[tuple[Any, ...]]:
    """Give tensors of one shape, on a CPU piece by piece: a step's passes then find each in its cache."""
    given = [tensor for tensor in tensors if tensor is not None]
    whole = given[0].device.type != "cpu" or not all(tensor.is_contiguous() for tensor in given)
    size = IN_CACHE * torch.get_num_threads()
    number = math.ceil(given[0].numel() / size)
    if whole or number <= 1:
        return (tensors,)
    nothing = (None,) * number
    return zip(*(nothing if t is None else torch.split(t.view(-1), size) for t in tensors), strict=True)


def _number_over(values: Tensor, bound: float) -> Tensor:
    """How many are beyond ±bound; NaN is not."""
    # ones and zeros of float32, which a CPU adds four times as fast as truth values, and exactly up to 2^24
    over = values.abs().gt_(bound)
    if over.numel() <= 2**24:
        return over.sum().long()
    return torch.stack([part.sum() for part in torch.split(over.flatten(), 2**24)]).long().sum()


def clip_metrics(state: SophiaState) -> dict[str, float]:
    """`clip_fraction`: the share of coordinates that the clip held back, the mean over the round's steps."""
    return {} if state.clips is None else {"clip_fraction": state.clips.fraction}


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
        clips = ClipCount.nothing_yet(start.parameters)
        if start.kept is None:
            state = SophiaState(0, zeros_like(start.parameters), zeros_like(start.parameters), clips)
        else:
            bundles = start.kept.bundles
            state = SophiaState(start.kept.step, bundles["momentum"], bundles["hessian"], clips)
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
        return clip_metrics(self.state)


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
        state = SophiaState(0, momentum, hessian, ClipCount.nothing_yet(start.parameters))
        return cls(parsed, "hessian" in start.bundles_wanted, state)

    @property
    def wants_hessian(self) -> bool:
        return self.hessian_wanted and self.state.step == 0

    def step(self, parameters: Tensors, gradients: Tensors, curvature: Tensors | None) -> "SophiaShared":
        state = sophia_step(parameters, gradients, self.state, self.settings, curvature)
        return replace(self, state=state, estimate=self.estimate or curvature)

    def uploads(self) -> Mapping[str, Tensors]:
        return {} if self.estimate is None else {"hessian": self.estimate}

    def metrics(self) -> dict[str, float]:
        return clip_metrics(self.state)
