# SPDX-License-Identifier: Apache-2.0
"""The contract of a server step.

A server step sees the same chunk of coordinates of everything: state bundles and combined bundles are
float32, shape (n,); what workers sent is shape (K, n), in slot order. It keeps nothing between calls.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from protocol.algorithms import Hyperparameters
from protocol.bound import DeltaBound

Chunk = npt.NDArray[np.float32]


@dataclass(frozen=True)
class StepContext:
    """What a server step may know of the round it closes."""

    hyperparameters: Hyperparameters
    bounds: tuple[DeltaBound | None, ...]
    """For each worker in slot order, what bounds the delta of the steps it did."""
    partial: bool
    """Whether the round invited only some of the run's workers."""


class ServerStep(Protocol):
    """How the global state moves when a round is closed."""

    def derive(
        self, received: Mapping[str, Chunk], state: Mapping[str, Chunk], context: StepContext
    ) -> Mapping[str, Chunk]:
        """Compute, worker by worker, bundles to be combined beside those received: {bundle: (K, n)}."""
        ...

    def apply(
        self, state: Mapping[str, Chunk], combined: Mapping[str, Chunk], context: StepContext
    ) -> Mapping[str, Chunk]:
        """Give the bundles of the state that change: {bundle: (n,)}."""
        ...
