# SPDX-License-Identifier: Apache-2.0
"""The algorithm table: which local optimizer, combiners and server step make one algorithm.

A row is data. Its optimizer is looked up in `worker.optimizers`, its combiners and its server step
in `ps_service.combiners` and `ps_service.server_steps`; nothing else knows an algorithm's name.
Hyper-parameters are validated here once; what reaches a worker are the settings of its optimizer.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.bound import DeltaBound
from protocol.errors import InvalidMessage, UnknownAlgorithm

MIN_REFRESH_BATCH = 8
"""Examples that a Hessian estimate is taken over, at least: that of a single one reveals its gradient."""

MOMENTUM_WEIGHT, ASYNCHRONOUS_MOMENTUM_WEIGHT = 0.92, 0.8

Rate = Annotated[float, Field(ge=1e-20, le=1e9)]
"""A positive number; η = R/(J·ρ) stays a normal float32 number for up to 1e6 steps."""
Decay = Annotated[float, Field(ge=0, lt=1)]
Period = Annotated[int, Field(ge=1, le=1_000_000_000)]


class Hyperparameters(BaseModel, ABC):
    """What a user sets for a run; every field has a default that works."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @abstractmethod
    def optimizer_settings(self, local_steps: int) -> dict[str, float]:
        """The numbers the worker's optimizer needs for a round of `local_steps` steps."""

    def in_asynchronous_run(self) -> Self:
        """The same, with what is left to the algorithm chosen for an asynchronous run."""
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


class FedAvgHyperparameters(Hyperparameters):
    """FedAvg (McMahan et al. 2017, arXiv 1602.05629, Algorithm 1): local SGD, then the mean."""

    learning_rate: Rate = 0.15

    def optimizer_settings(self, local_steps: int) -> dict[str, float]:
        return {"learning_rate": self.learning_rate}

    def periods(self) -> Mapping[str, int]:
        return {"delta": 1}

    def bound(self, steps: int, local_steps: int) -> DeltaBound | None:
        return None


class _ClippedHyperparameters(Hyperparameters):
    """What both forms of Fed-Sophia share: η = R/(J·ρ), so changing J needs no retuning."""

    max_round_step: Rate
    """R: the farthest a coordinate can move in a round."""
    clip_bound: Rate
    """ρ. Sophia's published rate is our η·ρ."""
    hessian_decay: Decay
    """β2."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 1e-3
    """λ."""
    epsilon: Rate = 1e-12

    def learning_rate(self, local_steps: int) -> float:
        """η = R/(J·ρ).

        Raises:
            InvalidMessage: η·λ is 1 or more, so that one step would erase the parameters.
        """
        rate = self.max_round_step / (local_steps * self.clip_bound)
        if rate * self.weight_decay >= 1:
            raise InvalidMessage(
                f"learning_rate·weight_decay is {rate * self.weight_decay:.3g}; it must stay below 1"
            )
        return rate

    def bound(self, steps: int, local_steps: int) -> DeltaBound:
        return DeltaBound.after(
            steps,
            learning_rate=self.learning_rate(local_steps),
            clip_bound=self.clip_bound,
            weight_decay=self.weight_decay,
        )

    def optimizer_settings(self, local_steps: int) -> dict[str, float]:
        return {
            "learning_rate": self.learning_rate(local_steps),
            "clip_bound": self.clip_bound,
            "hessian_decay": self.hessian_decay,
            "weight_decay": self.weight_decay,
            "epsilon": self.epsilon,
        }


class FedSophiaHyperparameters(_ClippedHyperparameters):
    """Fed-Sophia in the paper's form (arXiv 2406.06655): m and h stay on the worker."""

    max_round_step: Rate = 0.01
    clip_bound: Rate = 10.0
    momentum_decay: Decay = 0.9
    hessian_decay: Decay = 0.99
    hessian_every: Period = 10
    """τ, in local steps over the worker's life in the run."""

    def optimizer_settings(self, local_steps: int) -> dict[str, float]:
        return super().optimizer_settings(local_steps) | {
            "momentum_decay": self.momentum_decay,
            "hessian_every": float(self.hessian_every),
        }

    def periods(self) -> Mapping[str, int]:
        return {"delta": 1}


class FedSophiaSharedHyperparameters(_ClippedHyperparameters):
    """Fed-Sophia with curvature and direction shared through the server: workers keep no state.

    Near prior art: FedPAC (arXiv 2602.19271), FedCM (arXiv 2106.10874), FedPM (arXiv 2511.09100),
    FedLion (arXiv 2402.09941).
    """

    max_round_step: Rate = 0.04
    clip_bound: Rate = 10 / 3
    momentum_weight: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Mean weight of the global direction over the steps of a round, whatever J is.

    None chooses 0.92, and 0.8 in an asynchronous run, which has momentum of its own: stale updates go on
    where the model went some versions ago (Mitliagkas et al. 2016, arXiv 1605.09774).
    """
    direction_mixing: Decay | None = None
    """c. None chooses 0.5 when a version is made by some of the workers, 0 when by all; more if by few."""
    hessian_decay: Decay = 0.9
    refresh_rounds: Period = 5
    """R_h: every so many versions the workers' fresh Hessian estimates are combined."""

    def optimizer_settings(self, local_steps: int) -> dict[str, float]:
        weight = MOMENTUM_WEIGHT if self.momentum_weight is None else self.momentum_weight
        return super().optimizer_settings(local_steps) | {
            "momentum_decay": momentum_decay_for(weight, local_steps)
        }

    def in_asynchronous_run(self) -> Self:
        if self.momentum_weight is not None:
            return self
        return self.model_copy(update={"momentum_weight": ASYNCHRONOUS_MOMENTUM_WEIGHT})

    def periods(self) -> Mapping[str, int]:
        return {"delta": 1, "hessian": self.refresh_rounds}


def momentum_decay_for(momentum_weight: float, local_steps: int) -> float:
    """Solve (1/J)·Σ_{j=1..J} β1^j = `momentum_weight` for β1 in (0, 1).

    With β1 = e^−x the mean is e^−x·(1 − e^−Jx)/(J·(1 − e^−x)), which falls as x grows: bisection finds x.
    """
    low, high = 0.0, 750.0  # e^-750 is 0 in float64
    for _ in range(60):
        x = (low + high) / 2
        mean_weight = math.exp(-x) * math.expm1(-local_steps * x) / (local_steps * math.expm1(-x))
        low, high = (low, x) if mean_weight < momentum_weight else (x, high)
    return math.exp(-high)


@dataclass(frozen=True)
class Algorithm:
    """One row of the table."""

    name: str
    summary: str
    optimizer: str
    server_step: str
    hyperparameters: type[Hyperparameters]
    combiners: Mapping[str, str]
    """For every bundle that workers may send: the combiner used unless the run names another."""
    state_bundles: tuple[str, ...]
    """What the server keeps beside `params`; absent bundles are zeros."""
    derived: Mapping[str, str] = field(default_factory=dict)
    """Bundles the server step computes from a sent one before combining: {derived: sent}."""
    phases: ClassVar[tuple[str, ...]] = ("train",)

    def parse(self, values: Mapping[str, object]) -> Hyperparameters:
        """Validate a user's hyper-parameters; what is left out gets its default.

        Raises:
            InvalidMessage: a name is unknown or a value out of range.
        """
        try:
            return self.hyperparameters.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InvalidMessage(f"hyper-parameter {where} of {self.name}: {first['msg']}") from None


ALGORITHMS: dict[str, Algorithm] = {
    row.name: row
    for row in (
        Algorithm(
            name="fed-sophia-shared",
            summary="Fed-Sophia with curvature and direction shared through the server; the default",
            optimizer="sophia_shared",
            server_step="sophia_shared",
            hyperparameters=FedSophiaSharedHyperparameters,
            combiners={"delta": "mean", "hessian": "trimmed_mean"},
            state_bundles=("direction", "hessian"),
            derived={"direction": "delta"},
        ),
        Algorithm(
            name="fed-sophia",
            summary="Fed-Sophia as in the paper: momentum and curvature stay on each worker",
            optimizer="sophia",
            server_step="average",
            hyperparameters=FedSophiaHyperparameters,
            combiners={"delta": "mean"},
            state_bundles=(),
        ),
        Algorithm(
            name="fedavg",
            summary="Federated averaging of local SGD; the first-order baseline",
            optimizer="sgd",
            server_step="average",
            hyperparameters=FedAvgHyperparameters,
            combiners={"delta": "mean"},
            state_bundles=(),
        ),
    )
}


def algorithm_named(name: str) -> Algorithm:
    """Give the row with this name.

    Raises:
        UnknownAlgorithm: there is none.
    """
    try:
        return ALGORITHMS[name]
    except KeyError:
        raise UnknownAlgorithm(f"algorithm {name!r}: expected one of {', '.join(ALGORITHMS)}") from None
