# SPDX-License-Identifier: Apache-2.0
"""Trials: what a scenario asks to be trained, one by one."""

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pydantic import JsonValue

from fed_sophia.experiments.attacks import ATTACKS
from fed_sophia.experiments.scenario import Contender, Point, Scenario
from protocol.algorithms import algorithm_named
from protocol.errors import InvalidUsage
from protocol.estimates import GAUSS_NEWTON_BARTLETT

_KEY_LENGTH = 16
Described = dict[str, JsonValue]


@dataclass(frozen=True)
class Trial:
    """One training: an algorithm at one point of its hyper-parameters, with one seed."""

    scenario: str
    label: str
    point: int
    """Which of the label's points, counted from 0."""
    algorithm: str
    hyperparameters: Point
    """As the scenario says them; what is left out has the algorithm's default."""
    combiners: Mapping[str, str]
    task: str
    partition: str
    workers: int
    participation: float
    local_steps: int
    batch_size: int
    rounds: int
    """Exchanges with the server."""
    validation: int
    validation_seed: int
    evaluate_every: int
    iterate_average: bool
    seed: int
    attack: str | None = None
    """What the dishonest workers do; None where there are none."""
    attackers: int = 0
    """The last of the workers are dishonest, so many."""
    admission: bool = True
    """Whether their updates are judged before they count."""
    max_delta_norm: float | None = None
    encodings: Mapping[str, str] = field(default_factory=dict)
    """How bundles travel; f32 unless said."""

    @property
    def cohort_size(self) -> int:
        """How many workers a round invites: their share, rounded up."""
        return max(1, math.ceil(self.participation * self.workers - 1e-9))

    def is_evaluated(self, round_number: int) -> bool:
        """Whether the model is evaluated after so many rounds: every so many, and at the end."""
        return round_number % self.evaluate_every == 0 or round_number == self.rounds

    @cached_property
    def described(self) -> Described:
        """All that changes the outcome, each in its one spelling; JSON gives it back as it is.

        What the tables call a trial is no part of it, and neither is the engine. A hyper-parameter counts
        with its default when it is left out, so that a changed default makes another trial. Of a task of
        the user's the content of its file counts.

        Raises:
            InvalidUsage: that file cannot be read.
        """
        algorithm = algorithm_named(self.algorithm)
        return {
            "algorithm": self.algorithm,
            "hyperparameters": _without_the_usual(
                algorithm.parse(self.hyperparameters).model_dump(exclude_none=True)
            ),
            "combiners": {**algorithm.combiners, **self.combiners},
            "task": self.task,
            **_digest_of_file(self.task),
            "partition": _one_spelling(self.partition),
            **{name: getattr(self, name) for name in _COUNTED},
            **self._set_apart(),
        }

    def _set_apart(self) -> Described:
        """What only few trials have; nothing for all others, whose keys are older than that."""
        said: Described = {}
        if self.attack is not None:
            said |= {"attack": self.attack, "attackers": self.attackers}
            if ATTACKS[self.attack].sends:  # else there is nothing to judge
                said["admission"] = self.admission
        if self.max_delta_norm is not None:
            said["max_delta_norm"] = self.max_delta_norm
        if chosen := {bundle: name for bundle, name in self.encodings.items() if name != "f32"}:
            said["encodings"] = dict(chosen)
        return said

    @cached_property
    def key(self) -> str:
        """A name for all that is described: trials that have it in common need training once."""
        canonical = json.dumps(self.described, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:_KEY_LENGTH]


def _without_the_usual(hyperparameters: Described) -> Described:
    """Without those that are younger than the keys of many trials, where they are as they were for these."""
    return {
        name: value
        for name, value in hyperparameters.items()
        if (name, value) != ("hessian_estimator", GAUSS_NEWTON_BARTLETT)
    }


_COUNTED = (
    "workers",
    "cohort_size",
    "local_steps",
    "batch_size",
    "rounds",
    "validation",
    "validation_seed",
    "evaluate_every",
    "iterate_average",
    "seed",
)


def _digest_of_file(task: str) -> Described:
    """The digest of the file that the task is in; nothing for one of the menu."""
    path = task if task.endswith(".py") else task.rpartition(":")[0]  # as in file.py:ClassName
    if not path.endswith(".py"):
        return {}
    try:
        return {"task_digest": hashlib.sha256(Path(path).read_bytes()).hexdigest()}
    except OSError as error:
        raise InvalidUsage(f"task {task}: {error.strerror}") from None


def _one_spelling(partition: str) -> str:
    """`dirichlet:0.1` for `dirichlet:0.10`; what is no partition stays as it is, and is refused later."""
    name, colon, value = partition.partition(":")
    try:
        number = float(value) if name == "dirichlet" else int(value)
    except ValueError:
        return partition
    return f"{name}{colon}{number}"


def trials_of(
    scenario: Scenario,
    seeds: Collection[int] | None = None,
    labels: Collection[str] | None = None,
    points: Mapping[str, int] | None = None,
) -> list[Trial]:
    """Give the trials of a scenario, in an order that makes a sweep of use wherever it is stopped.

    The first seed at every point comes first; within a seed each algorithm has its first point, then each
    its second: none is ever ahead of another by more than one point.

    Args:
        seeds, labels: those wanted; None means all.
        points: {label: its one point}; None means all points of all, and a label left out has none.
    """
    contenders = [each for each in scenario.algorithms if labels is None or each.label in labels]
    most = max((len(each.all_points) for each in contenders), default=0)
    return [
        trial_of(scenario, each, point, seed)
        for seed in scenario.seeds
        if seeds is None or seed in seeds
        for point in range(most)
        for each in contenders
        if point < len(each.all_points) and (points is None or points.get(each.label) == point)
    ]


def part_of(trials: Sequence[Trial], part: str) -> list[Trial]:
    """Every N-th of the trials, from the K-th on: no two parts share one, whatever has been trained.

    Args: part: `K/N`.

    Raises:
        InvalidUsage: it is something else.
    """
    number, slash, parts = part.partition("/")
    if not (slash and number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise InvalidUsage(f"--part {part!r}: expected K/N with K from 1 to N, as in 2/8")
    return list(trials[int(number) - 1 :: int(parts)])


def trial_of(scenario: Scenario, contender: Contender, point: int, seed: int) -> Trial:
    """The trial of an algorithm of the scenario at its point of this number."""
    return Trial(
        scenario=scenario.name,
        label=contender.label,
        point=point,
        algorithm=contender.name,
        hyperparameters=contender.all_points[point],
        combiners=contender.combiners,
        task=scenario.task,
        partition=scenario.partition,
        workers=scenario.workers,
        participation=scenario.participation,
        local_steps=contender.local_steps or scenario.local_steps,
        batch_size=contender.batch_size or scenario.batch_size,
        rounds=contender.rounds or scenario.rounds,
        validation=scenario.validation,
        validation_seed=scenario.validation_seed,
        evaluate_every=scenario.evaluate_every,
        iterate_average=scenario.iterate_average,
        seed=seed,
        attack=contender.attack,
        attackers=0 if contender.attack is None else scenario.attackers,
        admission=contender.admission,
        max_delta_norm=contender.max_delta_norm,
        encodings=contender.encodings,
    )


def point_text(point: Point) -> str:
    """A point for people: `learning_rate 0.1, server_learning_rate 0.03`."""
    said = (f"{name} {value if isinstance(value, str) else f'{value:.4g}'}" for name, value in point.items())
    return ", ".join(said) or "defaults"
