# SPDX-License-Identifier: Apache-2.0
"""A scenario: which algorithms are compared, on what, at which points of their hyper-parameters.

It is a small TOML file; `docs/howto/run-an-experiment.md` shows one whole.
"""

import json
import math
import tomllib
from itertools import product
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fed_sophia.experiments.attacks import ATTACKS
from protocol.algorithms import algorithm_named
from protocol.errors import FedSophiaError, InvalidUsage
from protocol.fields import Finite, Identifier, Int, Label, PerBundle, Seed, Word
from protocol.run_encodings import check_encodings
from protocol.run_estimates import check_estimates

Steps = Annotated[Int, Field(ge=1, le=1_000_000)]
Share = Annotated[Finite, Field(gt=0, le=1)]
Point = dict[Label, Int | Finite | Word]
"""{hyper-parameter: value}."""

SCENARIOS = Path("benchmarks/experiments")
_OF_THE_CHECKOUT = Path(__file__).parents[2] / SCENARIOS


class _Read(BaseModel):
    """What stands in a file: unknown fields are refused, and nothing is guessed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Contender(_Read):
    """One algorithm of a comparison, with the points at which it is tried."""

    name: Label
    label: Label = Field(default_factory=lambda known: str(known.get("name", "")))
    """What the tables call it; its name unless said."""
    fixed: Point = Field(default_factory=dict)
    """Hyper-parameters that are the same at every point."""
    grid: dict[Label, Annotated[tuple[Int | Finite | Word, ...], Field(min_length=1)]] = Field(
        default_factory=dict
    )
    """{hyper-parameter: values}; every combination is a point."""
    points: tuple[Point, ...] = ()
    """The points themselves, where they are no grid."""
    local_steps: Steps | None = None
    batch_size: Steps | None = None
    rounds: Steps | None = None
    """Exchanges with the server; a two-phase algorithm needs two for each version."""
    combiners: PerBundle = Field(default_factory=dict)
    encodings: PerBundle = Field(default_factory=dict)
    """How bundles travel; f32 unless said."""
    fewer_points_because: Annotated[str, Field(min_length=1)] | None = None
    max_delta_norm: Annotated[Finite, Field(ge=1e-20, le=1e9)] | None = None
    attack: Label | None = None
    """What the scenario's attackers do; None where all workers are honest."""
    admission: bool = True
    """Whether updates are judged before they count, where there are attackers."""
    group: Label = Field(default_factory=lambda known: str(known.get("label", "")))
    """What the tables of attacks call it; its label unless said."""

    @model_validator(mode="after")
    def _fits_its_algorithm(self) -> Self:
        if self.grid and self.points:
            raise ValueError("expected a grid or points, not both")
        try:
            algorithm = algorithm_named(self.name)
            parsed = [algorithm.parse(point) for point in self.all_points]
        except FedSophiaError as error:
            raise ValueError(error.detail) from None
        if any(point in parsed[:place] for place, point in enumerate(parsed)):
            raise ValueError("two of the points are the same")
        if unknown := set(self.combiners) - set(algorithm.combiners):
            raise ValueError(f"combiners: {self.name} sends no bundle {min(unknown)!r}")
        for point in self.all_points:
            check_encodings(self.encodings, algorithm, point, self.local_steps or 1)
        if self.attack is not None:
            self._check_attack(self.attack, tuple(algorithm.combiners))
        return self

    def _check_attack(self, attack: str, bundles: tuple[str, ...]) -> None:
        if self.encodings:
            raise ValueError(f"attack {attack!r}: forged values are not encoded; leave out encodings")
        if attack not in ATTACKS:
            raise ValueError(f"attack {attack!r}: expected one of {', '.join(ATTACKS)}")
        forged = ATTACKS[attack].bundle
        if forged is not None and forged not in bundles:
            raise ValueError(f"attack {attack!r}: {self.name} sends no bundle {forged!r}")

    def under(self, attack: str, *, admission: bool) -> "Contender":
        """The same with attackers among its workers."""
        label = f"{self.label}: {attack}{'' if admission else ', all admitted'}"
        changes = {"attack": attack, "admission": admission, "label": label, "group": self.group}
        return Contender.model_validate(self.model_dump() | changes)

    @property
    def all_points(self) -> tuple[Point, ...]:
        """Every point with what is fixed, in the order of the file; the last name of a grid turns fastest."""
        if self.points:
            return tuple(self.fixed | point for point in self.points)
        names = tuple(self.grid)
        values = product(*self.grid.values())
        return tuple(self.fixed | dict(zip(names, each, strict=True)) for each in values)

    def varied(self, point: Point) -> Point:
        """What tells `point` from the others; all of it where there are no others."""
        if len(self.all_points) == 1:
            return dict(point)
        return {
            name: value
            for name, value in point.items()
            if any(other.get(name) != value for other in self.all_points)
        }

    def on_edge(self, point: Point) -> Point:
        """What of `point` is the least or the greatest of the values tried.

        A switch (0 or 1) and a word have no edge.
        """
        found: Point = {}
        for name, value in self.varied(point).items():
            tried = [other[name] for other in self.all_points if name in other]
            values = {each for each in tried if not isinstance(each, str)}
            if len(values) > 1 and values != {0, 1} and value in (min(values), max(values)):
                found[name] = value
        return found


class Scenario(_Read):
    """What a file says, with its name."""

    name: Identifier
    title: Annotated[str, Field(min_length=1)]
    task: Label
    partition: Label
    workers: Annotated[Int, Field(ge=1, le=100_000)]
    participation: Share = 1.0
    """Share of the workers that a round invites."""
    local_steps: Steps = 10
    batch_size: Steps = 32
    rounds: Steps
    validation: Annotated[Int, Field(ge=1)]
    """Training examples held out; the choice of hyper-parameters sees these alone."""
    validation_seed: Seed = 1234
    evaluate_every: Steps = 2
    """Rounds between two evaluations."""
    final_evaluations: Steps = 5
    """The final accuracy is the mean of so many of the last evaluations."""
    targets: tuple[Share, ...] = ()
    """Test accuracies to which rounds, bytes and seconds are counted."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    """Each chooses the split of the data, the first model and the sampling."""
    iterate_average: bool = False
    """Evaluate ā ← ā + 9/(r+8)·(θ − ā) instead of θ, r = 1, 2, … counting the rounds, for every algorithm."""
    attackers: Annotated[Int, Field(ge=0)] = 0
    """The last of the workers are dishonest, so many, where an attack is tried."""
    attacks: tuple[Label, ...] = ()
    """Each algorithm is tried under each of them, beside all workers being honest, and the honest alone."""
    admission: tuple[bool, ...] = (True,)
    """Whether updates are judged before they count: each is tried with each attack."""
    algorithms: Annotated[tuple[Contender, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.attackers >= self.workers:
            raise ValueError(f"attackers: {self.attackers} of {self.workers} workers leave nobody honest")
        if not self.attackers and (self.attacks or any(each.attack for each in self.algorithms)):
            raise ValueError("attackers: 0 make no attack")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds: one stands twice")
        labels = [each.label for each in self.algorithms]
        if twice := next((label for label in labels if labels.count(label) > 1), None):
            raise ValueError(f"algorithms: two have the label {twice!r}; give one of them another label")
        self._check_equal_points()
        for contender in self.algorithms:
            self._check_training(contender)
        return self

    def _check_equal_points(self) -> None:
        most = max(self.algorithms, key=lambda each: len(each.all_points))
        expected = len(most.all_points)
        for each in self.algorithms:
            if len(each.all_points) < expected and each.fewer_points_because is None:
                raise ValueError(
                    f"algorithms: {each.label} has {len(each.all_points)} points and {most.label} has "
                    f"{expected}; give it as many, or say fewer_points_because"
                )

    def _check_training(self, contender: Contender) -> None:
        algorithm = algorithm_named(contender.name)
        evaluations = math.ceil((contender.rounds or self.rounds) / self.evaluate_every)
        if self.final_evaluations > evaluations:
            raise ValueError(
                f"final_evaluations: {self.final_evaluations}: {contender.label} has {evaluations}, "
                f"one every {self.evaluate_every} rounds"
            )
        local_steps = contender.local_steps or self.local_steps
        batch_size = contender.batch_size or self.batch_size
        try:
            for point in contender.all_points:
                hyperparameters = algorithm.parse(point)
                hyperparameters.optimizer_settings(local_steps)
                check_estimates(algorithm, hyperparameters.hessian_estimate(), batch_size)
        except FedSophiaError as error:
            raise ValueError(f"algorithms: {contender.label}: {error.detail}") from None
        except ValueError as error:
            raise ValueError(f"algorithms: {contender.label}: {error}") from None

    def with_attacks(self) -> "Scenario":
        """The same with every attack as an algorithm of its own, `LABEL: ATTACK`; as it is without attacks.

        Raises:
            ValueError: an algorithm cannot be attacked so.
        """
        if not self.attacks:
            return self
        algorithms = []
        for each in self.algorithms:
            algorithms += [each, each.under("absent", admission=True)]
            algorithms += [
                each.under(attack, admission=admission)
                for attack in self.attacks
                for admission in self.admission
            ]
        fields = {**self.model_dump(), "attacks": (), "algorithms": tuple(algorithms)}
        return Scenario.model_validate(fields)

    def contender(self, label: str) -> Contender:
        """The algorithm that the tables call so.

        Raises:
            InvalidUsage: there is none.
        """
        for each in self.algorithms:
            if each.label == label:
                return each
        raise InvalidUsage(
            f"{self.name} has no algorithm {label!r}: expected one of "
            f"{', '.join(each.label for each in self.algorithms)}"
        )


def load_scenario(name_or_path: str) -> Scenario:
    """Read a scenario: `path/to/file.toml`, or the name of one in `benchmarks/experiments/`.

    A name is looked up below the current directory first, then in this checkout.

    Raises:
        InvalidUsage: there is no such file, or it is none; the message names the file and the field.
    """
    path = _path_of(name_or_path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidUsage(f"scenario {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidUsage(f"scenario {path}: {error}") from None
    if "name" in values:
        raise InvalidUsage(f"scenario {path}: name: it is the file's own; leave it out")
    try:
        # as JSON, so that an array may become a tuple and nothing else is converted
        text = json.dumps(values | {"name": path.stem}, default=str)
        return Scenario.model_validate_json(text).with_attacks()
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = "".join(f"{part}: " for part in _place(first["loc"], values))
        raise InvalidUsage(f"scenario {path}: {where}{first['msg'].removeprefix('Value error, ')}") from None


def scenario_files() -> dict[str, Path]:
    """{name: file} of the scenarios that can be named, those of the current directory first."""
    found = [path for folder in (SCENARIOS, _OF_THE_CHECKOUT) for path in sorted(folder.glob("*.toml"))]
    return {path.stem: path for path in reversed(found)}


def _path_of(name_or_path: str) -> Path:
    path = Path(name_or_path)
    if path.suffix or len(path.parts) != 1:
        return path
    known = scenario_files()
    if name_or_path not in known:
        names = ", ".join(sorted(known)) or f"none: there is no {SCENARIOS} here"
        raise InvalidUsage(f"scenario {name_or_path!r}: expected path/to/file.toml or one of {names}")
    return known[name_or_path]


def _place(where: tuple[int | str, ...], values: dict[str, object]) -> list[str]:
    """The field's place in words: an algorithm by its name rather than its number."""
    words = [str(part) for part in where]
    listed = values.get("algorithms")
    if len(where) > 1 and where[0] == "algorithms" and isinstance(where[1], int) and isinstance(listed, list):
        table = listed[where[1]]
        words[1] = (
            str(table.get("label", table.get("name", where[1]))) if isinstance(table, dict) else words[1]
        )
    return words
