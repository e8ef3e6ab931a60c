# SPDX-License-Identifier: Apache-2.0
"""The algorithm table: which local optimizer, combiners and server step make one algorithm.

A row is data. Its optimizer is looked up in `worker.optimizers`, its combiners and its server step
in `ps_service.combiners` and `ps_service.server_steps`; nothing else knows an algorithm's name.
Hyper-parameters are classes in `fed_sophia.py` and `baselines.py`, and are validated here once; what reaches
a worker are the settings of its optimizer.

`LOCAL+SERVER` names a row that is made of two: what the workers do is of the one, what the server makes of it
of the other. That means something where the one's server step only adds what is combined, and the other's
workers only do SGD.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache

from pydantic import ValidationError

from protocol.baselines import (
    CurvatureWeightedHyperparameters,
    DoneHyperparameters,
    FedAdagradHyperparameters,
    FedAdamHyperparameters,
    FedAvgHyperparameters,
    FedAvgMHyperparameters,
    FedCmHyperparameters,
    FedLionHyperparameters,
    FedProxHyperparameters,
    FedYogiHyperparameters,
    LocalAdamWHyperparameters,
    ScaffoldHyperparameters,
)
from protocol.errors import InvalidMessage, UnknownAlgorithm
from protocol.fed_sophia import FedSophiaHyperparameters, FedSophiaSharedHyperparameters
from protocol.hyperparameters import Hyperparameters
from protocol.joined import joined

SENT_PARAMS = "sent_params"
"""Of a version: its `params` as workers are given them, where a run sends them down in fewer bytes."""
MIN_REFRESH_BATCH = 8
"""Examples that a Hessian estimate is taken over, at least: that of a single one reveals its gradient."""


def name_in_message(bundle: str) -> str:
    """What a version's message calls the bundle that the version has under this name."""
    return "params" if bundle == SENT_PARAMS else bundle


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
    state_bundles: tuple[str, ...] = ()
    """What the server keeps beside `params` and sends with it; absent bundles are zeros."""
    server_bundles: tuple[str, ...] = ()
    """What the server keeps for its own step: no assignment names it. Absent bundles are zeros."""
    derived: Mapping[str, str] = field(default_factory=dict)
    """Bundles the server step computes from a sent one before combining: {derived: sent}."""
    normalised: tuple[str, ...] = ()
    """Of the state bundles those whose every value lies in [−1, 1]: a run may send them down as integers."""
    synchronous_because: str | None = None
    """Why asynchronous runs of it are refused; None if they are not."""
    combiners_because: str | None = None
    """Why runs of it may not choose other combiners; None if they may."""
    phases: tuple[str, ...] = ("train",)
    """What rounds are for, in turn: an algorithm of several takes so many to move the parameters once."""

    def phase_of(self, count: int) -> str:
        """What an update is part of; `count` as in `Hyperparameters.bundles_wanted`."""
        return self.phases[count % len(self.phases)]

    @property
    def sent_down(self) -> tuple[str, ...]:
        """The bundles of a version that workers are given."""
        return ("params", *self.state_bundles)

    @property
    def global_state(self) -> tuple[str, ...]:
        """All bundles of a version."""
        return (*self.sent_down, *self.server_bundles)

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
            combiners={"delta": "mean", "hessian": "winsorized_mean"},
            state_bundles=("direction", "hessian"),
            derived={"direction": "delta"},
            normalised=("direction",),
        ),
        Algorithm(
            name="fed-sophia",
            summary="Fed-Sophia as in the paper: momentum and curvature stay on each worker",
            optimizer="sophia",
            server_step="average",
            hyperparameters=FedSophiaHyperparameters,
            combiners={"delta": "mean"},
        ),
        Algorithm(
            name="fedavg",
            summary="Federated averaging of local SGD; the first-order baseline",
            optimizer="sgd",
            server_step="average",
            hyperparameters=FedAvgHyperparameters,
            combiners={"delta": "mean"},
        ),
        Algorithm(
            name="fedavgm",
            summary="FedAvg with momentum on the server",
            optimizer="sgd",
            server_step="momentum",
            hyperparameters=FedAvgMHyperparameters,
            combiners={"delta": "mean"},
            server_bundles=("momentum",),
        ),
        Algorithm(
            name="fedadam",
            summary="FedAvg with Adam on the server",
            optimizer="sgd",
            server_step="adam",
            hyperparameters=FedAdamHyperparameters,
            combiners={"delta": "mean"},
            server_bundles=("momentum", "second_moment"),
        ),
        Algorithm(
            name="fedyogi",
            summary="FedAvg with Yogi on the server",
            optimizer="sgd",
            server_step="yogi",
            hyperparameters=FedYogiHyperparameters,
            combiners={"delta": "mean"},
            server_bundles=("momentum", "second_moment"),
        ),
        Algorithm(
            name="fedadagrad",
            summary="FedAvg with Adagrad on the server",
            optimizer="sgd",
            server_step="adagrad",
            hyperparameters=FedAdagradHyperparameters,
            combiners={"delta": "mean"},
            server_bundles=("momentum", "second_moment"),
        ),
        Algorithm(
            name="fedprox",
            summary="FedAvg whose workers are drawn back to where they began",
            optimizer="proximal",
            server_step="average",
            hyperparameters=FedProxHyperparameters,
            combiners={"delta": "mean"},
        ),
        Algorithm(
            name="local-adamw",
            summary="AdamW on each worker, then the mean",
            optimizer="adamw",
            server_step="average",
            hyperparameters=LocalAdamWHyperparameters,
            combiners={"delta": "mean"},
        ),
        Algorithm(
            name="fedlion",
            summary="Lion on the workers, its momentum averaged by the server",
            optimizer="lion",
            server_step="shared_momentum",
            hyperparameters=FedLionHyperparameters,
            combiners={"delta": "mean", "momentum": "mean"},
            state_bundles=("momentum",),
        ),
        Algorithm(
            name="fedcm",
            summary="SGD guided by where all workers went last",
            optimizer="guided",
            server_step="direction",
            hyperparameters=FedCmHyperparameters,
            combiners={"delta": "mean"},
            state_bundles=("direction",),
            derived={"direction": "delta"},
        ),
        Algorithm(
            name="scaffold",
            summary="SGD corrected by control variates",
            optimizer="scaffold",
            server_step="scaffold",
            hyperparameters=ScaffoldHyperparameters,
            combiners={"delta": "mean", "control_delta": "mean"},
            state_bundles=("control",),
            synchronous_because="its control variates need a count of the workers they are of",
        ),
        Algorithm(
            name="curvature-weighted",
            summary="FedAvg whose mean is weighted by each worker's curvature",
            optimizer="measured",
            server_step="curvature_weighted",
            hyperparameters=CurvatureWeightedHyperparameters,
            combiners={"delta": "mean", "hessian": "mean"},
            derived={"weighted_delta": "delta"},
            synchronous_because="it weighs each delta by the curvature that came beside it",
            combiners_because="deltas and the curvature they are weighed by must be combined alike",
        ),
        Algorithm(
            name="done",
            summary="Approximate Newton steps: a gradient in one round, a direction in the next",
            optimizer="done",
            server_step="done",
            hyperparameters=DoneHyperparameters,
            combiners={"gradient": "mean", "delta": "mean"},
            state_bundles=("gradient",),
            synchronous_because="its workers must all go by the same gradient",
            phases=("gradient", "direction"),
        ),
    )
}


def _takes_deltas_alone(row: Algorithm) -> bool:
    """Whether its server step can follow any workers' deltas, and needs nothing that a join would drop."""
    plain = not row.state_bundles and not row.derived and len(row.phases) == 1
    return plain and set(row.combiners) == {"delta"} and row.synchronous_because is None


LOCALS = tuple(name for name, row in ALGORITHMS.items() if row.server_step == "average")
"""What may stand before the plus sign."""
SERVERS = tuple(
    name
    for name, row in ALGORITHMS.items()
    if row.optimizer == "sgd" and row.server_step != "average" and _takes_deltas_alone(row)
)
"""What may stand behind it."""
JOINED = tuple(f"{local}+{server}" for local in LOCALS for server in SERVERS)


def algorithm_named(name: str) -> Algorithm:
    """Give the row with this name, or the one that is made of two.

    Raises:
        UnknownAlgorithm: there is none, or the two have no meaning together.
    """
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    if name in JOINED:
        return _joined(name)
    if "+" in name:
        raise UnknownAlgorithm(
            f"algorithm {name!r}: expected LOCAL+SERVER, with one of {', '.join(LOCALS)} and then one of "
            f"{', '.join(SERVERS)}"
        )
    raise UnknownAlgorithm(f"algorithm {name!r}: expected one of {', '.join(ALGORITHMS)}, or LOCAL+SERVER")


@cache
def _joined(name: str) -> Algorithm:
    local, server = (ALGORITHMS[half] for half in name.split("+"))
    return replace(
        local,
        name=name,
        summary=f"{local.summary}; the server's half of {server.name}",
        server_step=server.server_step,
        server_bundles=server.server_bundles,
        hyperparameters=joined(name, local.hyperparameters, server.hyperparameters),
    )
