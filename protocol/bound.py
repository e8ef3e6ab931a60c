# SPDX-License-Identifier: Apache-2.0
"""The bound every honest Fed-Sophia delta satisfies, known before training begins.

    θ_J = a·θ_0 − η·Σ_t (1−ηλ)^(J−1−t)·u_t,   |u_t| ≤ ρ,   a = (1−ηλ)^J
    ⇒ | Δ + (1−a)·θ_0 | ≤ R,   R = (ρ/λ)·(1−a)      (R = ρ·J·η when λ = 0)

coordinate by coordinate, for any data, any momentum m and any Hessian h: the clip of the local step
(arXiv 2406.06655, the clipped update of Algorithm 1) bounds every u_t. The bound itself is ours.
It does not stop an attacker who stays inside it.

What float32 adds, for a worker that trains in it: each local step rounds θ three times, in the factor
1−ηλ, in its product with θ and in the sum with the step, and θ never exceeds |θ_0| + R. A half ulp is
at most 2⁻²⁴ of the value, so J steps and the final difference add at most 3(J+1)·2⁻²⁴·(|θ_0| + R);
rounded η, ρ and u add a few 2⁻²⁴·R, and 1e-4·R more than covers them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.encodings import Constants, Encoding
from protocol.encodings.dense import F32
from protocol.errors import OutsideBound

Float32Array = npt.NDArray[np.float32]
_HALF_ULP = 2.0**-24
_CONSTANTS_ROUNDING = 1e-4
_CONSTANTS_AGREE = 1e-6
"""Relative: what another library's logarithms, or float32, may make of R and 1−a."""


@dataclass(frozen=True)
class DeltaBound:
    """R and 1−a of a worker that did `steps` local steps."""

    radius: float
    shrinkage: float
    """1 − a: the share of θ_0 that weight decay removes over the steps."""
    steps: int

    @classmethod
    def after(
        cls, steps: int, *, learning_rate: float, clip_bound: float, weight_decay: float
    ) -> "DeltaBound":
        """The bound after `steps` equal steps of rate η with clip ρ and weight decay λ (0 ≤ ηλ < 1)."""
        shrinkage = -math.expm1(steps * math.log1p(-learning_rate * weight_decay))
        if shrinkage < 2.0**-53:  # λ is 0, or too small for float64 to tell from it
            return cls(radius=clip_bound * steps * learning_rate, shrinkage=shrinkage, steps=steps)
        return cls(radius=clip_bound * (shrinkage / weight_decay), shrinkage=shrinkage, steps=steps)

    @property
    def constants(self) -> Constants:
        """What a tensor's header says of it where the delta travels in a `bounded_*` encoding."""
        return {"scale": self.radius, "shrinkage": self.shrinkage}

    def require_constants(self, name: str, constants: Constants) -> None:
        """What is decoded with these constants lies within this bound, as it does for any payload.

        Raises:
            OutsideBound: they are another's.
        """
        for constant, expected in self.constants.items():
            if not abs(constants[constant] - expected) <= _CONSTANTS_AGREE * expected:
                raise OutsideBound(
                    f"{name}: {constant}: expected {expected:.9g} after {self.steps} steps, "
                    f"got {constants[constant]:.9g}"
                )

    def from_start(self, name: str, delta: Float32Array, start: Float32Array) -> Float32Array:
        """d = Δ + (1−a)·θ_0, within [−R, R]; what `bounded_*` encodings send of `delta`, same shape.

        Raises:
            OutsideBound: some |d| exceeds R by more than float32 rounding explains.
        """
        # of a tensor of no dimension numpy makes a number, which cannot be written into
        moved = np.asarray(np.float32(self.shrinkage) * start)
        moved += delta
        if not -self.radius <= moved.min(initial=0) <= moved.max(initial=0) <= self.radius:
            self.check(name, delta, start, F32)
            radius = np.float32(self.radius)
            np.clip(moved, -radius, radius, out=moved)
        return moved

    def normalise(self, delta: Float32Array, start: Float32Array) -> Float32Array:
        """q = (Δ + (1−a)·θ_0)/R, clipped to [−1, 1]; same shape as `delta`.

        An honest worker's q leaves [−1, 1] by float32 rounding at most.
        """
        q = delta + np.float32(self.shrinkage) * start
        q /= np.float32(self.radius)
        return np.clip(q, -1, 1, out=q)

    def check(self, name: str, delta: Float32Array, start: Float32Array, encoding: Encoding) -> None:
        """Accept a (part of a) delta, or say which coordinate left the box.

        Args:
            name: the tensor's name, for the message.
            delta, start: finite Δ as decoded, and θ_0; the same shape.
            encoding: how Δ travelled; its rounding is allowed for.

        Raises:
            OutsideBound: some |Δ + (1−a)θ_0| exceeds R by more than float32 rounding explains.
        """
        delta64 = delta.astype(np.float64)
        start64 = start.astype(np.float64)
        moved = np.abs(delta64 + self.shrinkage * start64)
        allowed = self.radius * (1 + _CONSTANTS_ROUNDING) + encoding.rounding(delta64)
        allowed += 3 * (self.steps + 1) * _HALF_ULP * (np.abs(start64) + self.radius)
        outside = ~(moved <= allowed)  # so that a NaN is outside too
        if outside.any():
            raise OutsideBound(
                f"{name}: {int(outside.sum())} of {outside.size} coordinates moved farther than "
                f"{self.radius:.6g} in {self.steps} steps"
            )


def bound_of(optimizer: str, settings: Mapping[str, float], steps: int) -> DeltaBound | None:
    """What bounds the delta of a worker's optimizer after so many steps; None if nothing does.

    The same, to the bit, as the run's hyper-parameters give: settings travel in full.
    """
    if optimizer == "lion":  # each step is a sign
        clip_bound, weight_decay = 1.0, 0.0
    elif optimizer in ("sophia", "sophia_shared"):
        clip_bound, weight_decay = settings["clip_bound"], settings["weight_decay"]
    else:
        return None
    return DeltaBound.after(
        steps, learning_rate=settings["learning_rate"], clip_bound=clip_bound, weight_decay=weight_decay
    )


def delta_of(decoded: Float32Array, start: Float32Array, constants: Constants) -> Float32Array:
    """Δ of what a `delta` was decoded to, in place: from d = Δ + (1−a)·θ_0 where it travelled so.

    Args: constants: of the tensor's header.
    """
    shrinkage = constants.get("shrinkage", 0.0)
    if shrinkage:
        decoded -= np.float32(shrinkage) * start
    return decoded
