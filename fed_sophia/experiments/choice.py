# SPDX-License-Identifier: Apache-2.0
"""Which point of an algorithm's hyper-parameters the validation examples choose."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from fed_sophia.experiments.results import Result
from fed_sophia.experiments.scenario import Contender, Scenario
from fed_sophia.experiments.trials import point_text, trial_of

BySeed = Mapping[int, Result]


@dataclass(frozen=True)
class Choice:
    """The point that was chosen, and by what."""

    point: int
    seeds: tuple[int, ...]
    """By which seeds; none where the points tried have none in common, so that each was judged by its own."""
    points_tried: int
    """Points with a result at all."""
    results: BySeed
    """{seed: result} of the chosen point."""


def results_of(scenario: Scenario, contender: Contender, stored: Mapping[str, Result]) -> tuple[BySeed, ...]:
    """For each point {seed: result} of what is there.

    Args:
        stored: {key: result}; those of other trials do not matter.
    """
    found = []
    for point in range(len(contender.all_points)):
        keys = {seed: trial_of(scenario, contender, point, seed).key for seed in scenario.seeds}
        found.append({seed: stored[key] for seed, key in keys.items() if key in stored})
    return tuple(found)


def chosen_point(points: tuple[BySeed, ...], final_evaluations: int) -> Choice | None:
    """Choose the point with the highest mean final validation accuracy; None where nothing is there.

    The mean is over the seeds that every point has that was tried at all; seeds that only the chosen point
    was given afterwards do not count. A trial that failed counts as an accuracy of 0. Of equal points the
    first is chosen.
    """
    tried = [point for point, by_seed in enumerate(points) if by_seed]
    if not tried:
        return None
    common = _common_seeds([points[point] for point in tried])

    def accuracy(point: int) -> float:
        seeds = common or tuple(points[point])
        return fmean(points[point][seed].final_validation_accuracy(final_evaluations) for seed in seeds)

    best = max(tried, key=accuracy)
    return Choice(best, common, len(tried), points[best])


def missing_to_choose(contender: Contender, points: tuple[BySeed, ...]) -> str | None:
    """What must be trained before the choice is one among all points; None where nothing is missing."""
    if len(points) == 1 or _common_seeds(points):
        return None
    untried = [point for point, by_seed in enumerate(points) if not by_seed]
    if not untried:
        return f"no seed has a result at all {len(points)} points"
    words = "; ".join(point_text(contender.varied(contender.all_points[point])) for point in untried)
    return f"no result at {len(untried)} of {len(points)} points ({words})"


def choices(scenario: Scenario, stored: Mapping[str, Result]) -> dict[str, Choice]:
    """{label: its choice} of the algorithms that have results."""
    chosen = {
        each.label: chosen_point(results_of(scenario, each, stored), scenario.final_evaluations)
        for each in scenario.algorithms
    }
    return {label: choice for label, choice in chosen.items() if choice is not None}


def _common_seeds(points: Sequence[BySeed]) -> tuple[int, ...]:
    first, *others = points
    return tuple(seed for seed in first if all(seed in by_seed for by_seed in others))
