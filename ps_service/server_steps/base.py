# SPDX-License-Identifier: Apache-2.0
"""The contract of a server step.

A server step sees the same chunk of coordinates of everything: state bundles and combined bundles are
float32, shape (n,); what workers sent is shape (K, n), in slot order, with a K of its own for each bundle.
It keeps nothing between calls.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from protocol.bound import DeltaBound
from protocol.hyperparameters import Hyperparameters

Chunk = npt.NDArray[np.float32]


@dataclass(frozen=True)
class StepContext:
    """What a server step may know of the round it closes."""

    hyperparameters: Hyperparameters
    """Of the algorithm that the step belongs to."""
    bounds: tuple[DeltaBound | None, ...]
    """For each delta, what bounds it after the steps its worker did."""
    partial: bool
    """Whether the round heard only some of the run's workers."""
    share: float = 1.0
    """Below 1 in an asynchronous run: what these updates are of all that are being made at the same time.

    A step moves by this share of its combined delta, so that as many updates move the model as far as a round
    of all of them would.
    """
    steps: tuple[int, ...] = ()
    """For each delta, the local steps its worker did."""
    workers: int | None = None
    """So many workers could have been invited when the round was opened; None if it was not written down."""

    def kept(self, decay: float) -> float:
        """What of an average with this decay stays in this version: decay^s.

        With a share s below 1 it then spans as many updates as in a synchronous run, which makes 1/s times
        fewer versions of them.
        """
        kept: float = decay**self.share
        return kept


class ServerStep(Protocol):
    """How the global state moves when a round is closed."""

    def derive(
        self, received: Mapping[str, Chunk], starts: Iterable[Chunk], context: StepContext
    ) -> Mapping[str, Chunk]:
        """Compute, delta by delta, bundles to be combined beside those received: {bundle: (K, n)}.

        Args: starts: for each delta, the parameters it was made from, shape (n,); not to be changed.
        """
        ...

    def apply(
        self, state: Mapping[str, Chunk], combined: Mapping[str, Chunk], context: StepContext
    ) -> Mapping[str, Chunk]:
        """Give the bundles of the state that change: {bundle: (n,)}."""
        ...


class CombinesAsReceived:
    """For steps that combine what workers sent, and nothing that follows from it."""

    def derive(
        self, received: Mapping[str, Chunk], starts: Iterable[Chunk], context: StepContext
    ) -> Mapping[str, Chunk]:
        return {}


def blend(old: Chunk, new: Chunk, decay: float) -> Chunk:
    """decay·old + (1−decay)·new in float32."""
    blended: Chunk = np.float32(decay) * old + np.float32(1 - decay) * new
    return blended
