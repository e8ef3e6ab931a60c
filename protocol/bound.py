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
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.encodings import Encoding
from protocol.errors import OutsideBound

Float32Array = npt.NDArray[np.float32]
_HALF_ULP = 2.0**-24
_CONSTANTS_ROUNDING = 1e-4


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
