# SPDX-License-Identifier: Apache-2.0
"""What an optimizer of the worker half is: a frozen value that says where it stands.

A round begins with `begin(settings, start)`; every `step` returns the next value; at the end the value
says what to upload and what to keep. Nothing is hidden: what is worth saving is in `kept()`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from protocol.errors import InvalidMessage, NotFinite

LARGEST_FLOAT32 = torch.finfo(torch.float32).max

Tensors = tuple[torch.Tensor, ...]
"""One tensor for each exchanged parameter, in the model's order."""


@dataclass(frozen=True)
class KeptTensors:
    """What an optimizer keeps on its worker between rounds."""

    step: int
    """Local steps done so far, over the worker's life in the run."""
    bundles: Mapping[str, Tensors]


@dataclass(frozen=True)
class RoundStart:
    """What an optimizer is given when a round begins. It changes none of these tensors."""

    parameters: Tensors
    """θ_0, the parameters the assignment named. They may be moved afterwards: what is to stay is copied."""
    shared: Mapping[str, Tensors]
    """The server's other bundles, by name; an absent one is zeros."""
    kept: KeptTensors | None
    """What this optimizer kept after the last round; None in the first, or when it was lost."""
    bundles_wanted: tuple[str, ...]
    """What the update must carry."""

    def shared_or_zeros(self, bundle: str) -> Tensors:
        return self.shared[bundle] if bundle in self.shared else zeros_like(self.parameters)


class Optimizer(Protocol):
    """Where an optimizer stands in a round."""

    @property
    def wants_hessian(self) -> bool:
        """Whether the next step is to be given a fresh estimate of the Hessian's diagonal."""
        ...

    @property
    def vector(self) -> Tensors | None:
        """What the next step is to be given the Hessian's product with; None beside an estimate."""
        ...

    @property
    def one_batch(self) -> bool:
        """Whether all steps of the round are made on the mini-batch of the first."""
        ...

    def step(self, parameters: Tensors, gradients: Tensors, curvature: Tensors | None) -> "Optimizer":
        """Move `parameters` in place by one local step; return where the optimizer stands after it.

        Coordinate by coordinate: tensors may have a leading dimension more, of workers that step together.

        Args:
            gradients: those at the parameters before the step, on its mini-batch; not changed, and not kept:
                those of the next step may be written over them.
            curvature: what was wanted, an estimate or a product, at the same place; not changed.
        """
        ...

    def uploads(self) -> Mapping[str, Tensors]:
        """Bundles for the server; the delta is how far the parameters moved, unless it is among them."""
        ...

    def kept(self) -> KeptTensors | None:
        """What the next round must be given; None if nothing."""
        ...

    def metrics(self) -> dict[str, float]:
        """Numbers about the steps since the round began. This may wait for the device; a step does not."""
        ...


class PlainSteps:
    """What holds for an optimizer where it says nothing else.

    Each step wants a new mini-batch and its gradient alone; nothing but the delta is sent, nothing kept.
    """

    @property
    def wants_hessian(self) -> bool:
        return False

    @property
    def vector(self) -> Tensors | None:
        return None

    @property
    def one_batch(self) -> bool:
        return False

    def uploads(self) -> Mapping[str, Tensors]:
        return {}

    def kept(self) -> KeptTensors | None:
        return None

    def metrics(self) -> dict[str, float]:
        return {}


class BeginRound(Protocol):
    """How an optimizer enters a round: one line of the menu.

    Raises:
        InvalidMessage: a setting is missing.
        NotFinite: a setting is no finite number.
    """

    def __call__(self, settings: Mapping[str, float], start: RoundStart) -> Optimizer: ...


def zeros_like(tensors: Tensors) -> Tensors:
    return tuple(torch.zeros_like(tensor) for tensor in tensors)


def copies_of(tensors: Tensors) -> Tensors:
    """Tensors that stay what they are when the parameters are moved."""
    return tuple(tensor.detach().clone() for tensor in tensors)


def averaged(average: Tensors, new: Tensors, decay: float) -> Tensors:
    """decay·average + (1−decay)·new, as new tensors."""
    result = torch._foreach_mul(average, decay)
    torch._foreach_add_(result, new, alpha=1 - decay)
    return tuple(result)


def setting(settings: Mapping[str, float], name: str) -> float:
    """Give one of an assignment's settings.

    Raises:
        InvalidMessage: it is missing.
        NotFinite: it is NaN or infinite, or would be in float32.
    """
    if name not in settings:
        found = ", ".join(sorted(settings)) or "none"
        raise InvalidMessage(f"settings: {name} is missing; found {found}")
    value = settings[name]
    if not abs(value) <= LARGEST_FLOAT32:  # this way round, NaN is refused too
        raise NotFinite(f"settings: {name} is {value:g}, expected a finite number of float32")
    return value
