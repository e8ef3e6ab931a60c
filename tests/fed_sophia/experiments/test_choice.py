# SPDX-License-Identifier: Apache-2.0
"""The choice of hyper-parameters: by validation, over seeds that all points have."""

from fed_sophia.experiments.choice import chosen_point
from fed_sophia.experiments.results import Result
from tests.fed_sophia.experiments.formula_engine import a_result


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
    assert (choice.point, choice.seeds, choice.points_tried) == (2, (), 2)


def test_nothing_is_chosen_of_nothing() -> None:
    assert chosen_point(({}, {}), 1) is None
