# SPDX-License-Identifier: Apache-2.0
"""What the hyper-parameters of every algorithm are: values with defaults that work, validated once.

Those of Fed-Sophia are in `fed_sophia.py`, those of the baselines in `baselines.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from protocol.bound import DeltaBound
from protocol.errors import InvalidMessage
from protocol.estimates import GAUSS_NEWTON_BARTLETT, HessianEstimate, HessianEstimator

Rate = Annotated[float, Field(ge=1e-20, le=1e9)]
"""A positive number; η = R/(J·ρ) stays a normal float32 number for up to 1e6 steps."""
Decay = Annotated[float, Field(ge=0, lt=1)]
WeightDecay = Annotated[float, Field(ge=0, le=10)]
Period = Annotated[int, Field(ge=1, le=1_000_000_000)]


class Hyperparameters(BaseModel, ABC):
    """What a user sets for a run; every field has a default that works."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @abstractmethod
    def optimizer_settings(self, local_steps: int) -> dict[str, float]:
        """The numbers the worker's optimizer needs for a round of `local_steps` steps."""

    def hessian_estimate(self) -> HessianEstimate:
        """How its workers take estimates of the Hessian, where they take any."""
        return HessianEstimate()

    def in_asynchronous_run(self) -> Self:
        """The same, with what is left to the algorithm chosen for an asynchronous run."""
        return self

    def for_server_step(self) -> "Hyperparameters":
        """Those that the server step is of; another algorithm's where two are joined."""
        return self

    @abstractmethod
    def periods(self) -> Mapping[str, int]:
        """{bundle: every how many versions it is combined}, in the order in which an update carries them.

        In an asynchronous run a worker sends it with every so many of its updates instead.
        """

    def bundles_wanted(self, count: int) -> tuple[str, ...]:
        """Which bundles an update carries.

        Args: count: its version; in an asynchronous run, how many its worker was asked for before.
        """
        return tuple(bundle for bundle, period in self.periods().items() if count % period == 0)

    @abstractmethod
    def bound(self, steps: int, local_steps: int) -> DeltaBound | None:
        """What bounds the delta of a worker that did `steps` of `local_steps`; None if nothing does."""


class EstimatingHyperparameters(Hyperparameters):
    """What is set of every algorithm whose workers estimate the Hessian."""

    hessian_estimator: HessianEstimator = GAUSS_NEWTON_BARTLETT
    hessian_batch: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """So many examples of a step's mini-batch an estimate is taken of. None: of all."""

    def hessian_estimate(self) -> HessianEstimate:
        return HessianEstimate(self.hessian_estimator, self.hessian_batch)


def check_decay(learning_rate: float, weight_decay: float) -> None:
    """Raises: InvalidMessage: η·λ is 1 or more, so that one step would erase the parameters."""
    product = learning_rate * weight_decay
    if product >= 1:
        raise InvalidMessage(f"learning_rate·weight_decay is {product:.3g}; it must stay below 1")
