# SPDX-License-Identifier: Apache-2.0
"""The choice of hyper-parameters: by validation, over seeds that all points have."""

from pathlib import Path

from fed_sophia.experiments.choice import BySeed, chosen_point, missing_to_choose
from fed_sophia.experiments.results import Result
from fed_sophia.experiments.scenario import load_scenario
from tests.fed_sophia.experiments.formula_engine import a_result, scenario_file


def scored(validation: float, test: float = 0.5, *, failure: str | None = None) -> Result:
    return a_result((test,), (validation,), failure=failure)


def test_validation_chooses_and_test_accuracy_does_not() -> None:
    points = ({0: scored(0.8, test=0.1)}, {0: scored(0.7, test=0.9)})
    choice = chosen_point(points, 1)
    assert choice is not None
    assert (choice.point, choice.seeds, choice.points_tried) == (0, (0,), 2)


def test_the_mean_over_the_seeds_chooses_not_the_best_of_them() -> None:
    points = ({0: scored(0.9), 1: scored(0.1)}, {0: scored(0.6), 1: scored(0.6)})
    choice = chosen_point(points, 1)
    assert choice is not None and choice.point == 1


def test_a_point_that_failed_once_counts_that_as_nothing() -> None:
    points = ({0: scored(0.9), 1: scored(0.9, failure="NaN")}, {0: scored(0.5), 1: scored(0.5)})
    choice = chosen_point(points, 1)
    assert choice is not None and choice.point == 1


def test_of_equal_points_the_first_is_chosen() -> None:
    choice = chosen_point(({0: scored(0.5)}, {0: scored(0.5)}), 1)
    assert choice is not None and choice.point == 0


def test_seeds_that_the_chosen_point_was_given_afterwards_do_not_unchoose_it() -> None:
    points = ({0: scored(0.8), 1: scored(0.1), 2: scored(0.1)}, {0: scored(0.7)})
    choice = chosen_point(points, 1)
    assert choice is not None
    assert (choice.point, choice.seeds) == (0, (0,))
    assert set(choice.results) == {0, 1, 2}


def test_of_a_sweep_stopped_early_the_best_of_what_is_there_is_shown_and_says_so() -> None:
    choice = chosen_point(({0: scored(0.5)}, {}, {0: scored(0.6)}), 1)
    assert choice is not None
    assert (choice.point, choice.seeds, choice.points_tried) == (2, (0,), 2)


def test_a_point_that_was_not_tried_does_not_have_the_others_judged_by_different_seeds() -> None:
    """By seed 0 alone the second is better; its seed 1, which the first lacks, would have made it worse."""
    choice = chosen_point(({0: scored(0.5)}, {0: scored(0.6), 1: scored(0.1)}, {}), 1)
    assert choice is not None
    assert (choice.point, choice.seeds) == (1, (0,))


def test_where_no_seed_is_common_each_point_is_judged_by_its_own_and_it_is_told() -> None:
    choice = chosen_point(({0: scored(0.5)}, {1: scored(0.6)}), 1)
    assert choice is not None
    assert (choice.point, choice.seeds) == (1, ())


def test_what_is_missing_before_all_points_have_been_compared_is_named(tmp_path: Path) -> None:
    fedavg = load_scenario(scenario_file(tmp_path)).contender("fedavg")
    result = scored(0.5)
    cases: list[tuple[tuple[BySeed, ...], str | None]] = [
        (({0: result, 1: result}, {0: result}), None),
        (({0: result}, {}), "no result at 1 of 2 points (learning_rate 0.2)"),
        (({}, {}), "no result at 2 of 2 points (learning_rate 0.1; learning_rate 0.2)"),
        (({0: result}, {1: result}), "no seed has a result at all 2 points"),
    ]
    for points, said in cases:
        assert missing_to_choose(fedavg, points) == said
    assert missing_to_choose(fedavg, ({},)) is None  # of one there is nothing to choose


def test_nothing_is_chosen_of_nothing() -> None:
    assert chosen_point(({}, {}), 1) is None
