# SPDX-License-Identifier: Apache-2.0
"""The numbers of a comparison: for each algorithm at its chosen point, the mean and spread over the seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev

from fed_sophia.experiments.choice import BySeed, Choice, choices, results_of
from fed_sophia.experiments.results import Result
from fed_sophia.experiments.scenario import Contender, Point, Scenario

BYTES_OF_A_MB = 1_000_000


@dataclass(frozen=True)
class Spread:
    """A mean and the sample's standard deviation."""

    mean: float
    deviation: float | None
    """None where there is one value."""
    count: int


@dataclass(frozen=True)
class ToTarget:
    """What it took until an accuracy was measured, over the seeds that reached it."""

    target: float
    reached: int
    of: int
    rounds: Spread | None
    """Exchanges; all four are None where no seed reached it."""
    megabytes_up: Spread | None
    """Of all workers."""
    megabytes_down: Spread | None
    seconds: Spread | None


@dataclass(frozen=True)
class Row:
    """One algorithm of a comparison."""

    label: str
    algorithm: str
    accuracy: Spread
    """Final test accuracy, a fraction."""
    seeds: tuple[int, ...]
    targets: tuple[ToTarget, ...]
    varied: Point
    """The chosen point, without what is the same at all of them."""
    on_edge: Point
    """What of it is the least or the greatest value that stood to choice."""
    points_tried: int
    points: int
    chosen_by_seeds: tuple[int, ...]
    seconds: Spread | None
    """Of a whole trial; like the two below over the trials that did not fail."""
    examples_per_second: Spread | None
    joules: Spread | None
    failures: tuple[str, ...]
    """`seed 2: …` for each trial that failed."""

    @property
    def is_comparable(self) -> bool:
        """Whether its spread is one of accuracies: two at least, and none a failure that counts as 0."""
        return self.accuracy.count > 1 and not self.failures


@dataclass(frozen=True)
class Standing:
    """How rows stand to the best of them, as far as their spreads tell."""

    best: Row | None
    """The most accurate that can be compared; None where fewer than two can."""
    near: tuple[Row, ...]
    """Within one pooled standard deviation of the best."""
    far: tuple[Row, ...]
    not_comparable: tuple[Row, ...]


@dataclass(frozen=True)
class Comparison:
    """All that the results of one engine say of a scenario."""

    scenario: Scenario
    engine: str
    chosen: Mapping[str, Choice]
    rows: Sequence[Row]
    failed_elsewhere: int
    """Trials that failed at points that were not chosen."""

    def fields(self) -> dict[str, object]:
        """The same for machines."""
        rows = [asdict(row) for row in self.rows]
        return {"scenario": self.scenario.name, "engine": self.engine, "rows": rows}


def compare(scenario: Scenario, engine: str, stored: Mapping[str, Result]) -> Comparison | None:
    """Compare a scenario's algorithms at their chosen points; None where none has a result.

    Args:
        stored: {key: result} of what the engine trained.
    """
    chosen = choices(scenario, stored)
    if not chosen:
        return None
    rows = rows_of(scenario, chosen)
    failed = sum(
        result.failure is not None
        for each in scenario.algorithms
        for by_seed in results_of(scenario, each, stored)
        for result in by_seed.values()
    )
    return Comparison(scenario, engine, chosen, rows, failed - sum(len(row.failures) for row in rows))


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and spread; None of nothing."""
    if not values:
        return None
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def rows_of(scenario: Scenario, chosen: Mapping[str, Choice]) -> list[Row]:
    """One row for each algorithm that has results, the most accurate first."""
    rows = [_row(scenario, each, chosen[each.label]) for each in scenario.algorithms if each.label in chosen]
    return sorted(rows, key=lambda row: -row.accuracy.mean)


def pooled_deviation(one: Spread, other: Spread) -> float | None:
    """The standard deviation of two samples taken together; None where neither has two values.

    s² = ((n₁−1)s₁² + (n₂−1)s₂²)/(n₁+n₂−2).
    """
    freedom = one.count + other.count - 2
    if freedom == 0:
        return None
    squares = sum((each.count - 1) * (each.deviation or 0.0) ** 2 for each in (one, other))
    return math.sqrt(squares / freedom)


def standing(rows: Sequence[Row]) -> Standing:
    """Tell which rows are near the best and which are not; of rows with one seed or a failure neither."""
    not_comparable = tuple(row for row in rows if not row.is_comparable)
    comparable = [row for row in rows if row.is_comparable]
    if len(comparable) < 2:
        return Standing(None, (), (), not_comparable)
    best, *others = comparable
    near = tuple(row for row in others if _is_near(best.accuracy, row.accuracy))
    return Standing(best, near, tuple(row for row in others if row not in near), not_comparable)


def _is_near(best: Spread, other: Spread) -> bool:
    deviation = pooled_deviation(best, other)
    return deviation is not None and best.mean - other.mean <= deviation


def _row(scenario: Scenario, contender: Contender, choice: Choice) -> Row:
    ended = [result for result in choice.results.values() if result.failure is None]
    accuracy = spread(
        [result.final_accuracy(scenario.final_evaluations) for result in choice.results.values()]
    )
    assert accuracy is not None  # a chosen point has a result
    return Row(
        label=contender.label,
        algorithm=contender.name,
        accuracy=accuracy,
        seeds=tuple(choice.results),
        targets=tuple(_to_target(target, choice.results) for target in scenario.targets),
        varied=contender.varied(contender.all_points[choice.point]),
        on_edge=contender.on_edge(contender.all_points[choice.point]),
        points_tried=choice.points_tried,
        points=len(contender.all_points),
        chosen_by_seeds=choice.seeds,
        seconds=spread([result.seconds for result in ended]),
        examples_per_second=spread(
            [speed for result in ended if (speed := result.examples_per_second) is not None]
        ),
        joules=spread([result.joules for result in ended if result.joules is not None]),
        failures=tuple(
            f"seed {seed}: {result.failure}"
            for seed, result in choice.results.items()
            if result.failure is not None
        ),
    )


def _to_target(target: float, results: BySeed) -> ToTarget:
    places: list[tuple[Result, int]] = [
        (result, place) for result in results.values() if (place := result.reached(target)) is not None
    ]
    columns = [(result.evaluations, place) for result, place in places]
    return ToTarget(
        target=target,
        reached=len(places),
        of=len(results),
        rounds=spread([each.round[place] for each, place in columns]),
        megabytes_up=spread([each.bytes_up[place] / BYTES_OF_A_MB for each, place in columns]),
        megabytes_down=spread([each.bytes_down[place] / BYTES_OF_A_MB for each, place in columns]),
        seconds=spread([each.seconds[place] for each, place in columns]),
    )
