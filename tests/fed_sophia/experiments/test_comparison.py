# SPDX-License-Identifier: Apache-2.0
"""The tables: hand-worked numbers, and what is said below them."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from fed_sophia import __version__
from fed_sophia.experiments.engine import Outcome, Report
from fed_sophia.experiments.notes import significance
from fed_sophia.experiments.report import markdown
from fed_sophia.experiments.results import result_of
from fed_sophia.experiments.results_file import load_results
from fed_sophia.experiments.scenario import load_scenario
from fed_sophia.experiments.sweep import Sweep
from fed_sophia.experiments.table import Comparison, Row, Spread, compare, pooled_deviation, spread
from fed_sophia.experiments.trials import Trial, trials_of
from tests.fed_sophia.experiments.formula_engine import SMALL, FormulaEngine, by_rate, scenario_file
from tests.fed_sophia.experiments.test_sweep import Listener


def compared(folder: Path, engine: FormulaEngine, text: str = SMALL) -> Comparison:
    scenario = load_scenario(scenario_file(folder, text))
    stored = {}
    for trial in trials_of(scenario):
        evaluated = []
        outcome = engine.run(trial, evaluated.append)
        stored[trial.key] = result_of(trial, engine, evaluated, outcome)
    comparison = compare(scenario, engine.name, stored)
    assert comparison is not None
    return comparison


def cells(page: str, label: str) -> list[list[str]]:
    """The cells of each table's row that begins with `label`."""
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in page.splitlines()
        if re.match(rf"\| {re.escape(label)} +\|", line)
    ]


def test_the_numbers_of_a_table_are_those_worked_by_hand(tmp_path: Path) -> None:
    """fedavg at 0.2: 0.40 and 0.41 after 2 rounds; 0.60 and 0.61 after 4: mean 0.605, s = 0.01/√2 = 0.0071.

    50 % is thus first met after 4 rounds: 4 s, 4·2 MB up, 4·3 MB down, for both seeds; 90 % never.
    fedavgm at 0.1 has 0.50 and 0.51 after 4 rounds, at both of its points: the first is chosen.
    100 examples a round of one second.
    """
    page = markdown(compared(tmp_path, FormulaEngine()))
    accuracy, cost = cells(page, "fedavg")
    assert accuracy[1:] == ["60.50 ± 0.71", "4.0 ± 0.0", "–", "2", "learning_rate 0.2", "2"]
    assert cost[1:] == ["8.0 ± 0.0", "12 ± 0", "4.0 ± 0.0", "–", "–", "–", "4.0 ± 0.0", "100 ± 0"]
    accuracy, _ = cells(page, "fedavgm")
    assert accuracy[1:] == ["50.50 ± 0.71", "4.0 ± 0.0", "–", "2", "server_learning_rate 0.5", "2"]
    assert page.index("| fedavg ") < page.index("| fedavgm ")


def test_a_target_that_some_seeds_missed_says_how_many_reached_it(tmp_path: Path) -> None:
    """At 0.2 the seeds end at 0.60 and 0.61: one of them reaches 0.605, after 4 rounds."""
    page = markdown(compared(tmp_path, FormulaEngine(), SMALL.replace("[0.5, 0.9]", "[0.605]")))
    assert cells(page, "fedavg")[0][2] == "4.0 (1/2)"


def test_the_table_shows_the_point_that_validation_chose_though_another_tested_better(tmp_path: Path) -> None:
    engine = FormulaEngine(validation=lambda trial, number: 1 - by_rate(trial, number))
    page = markdown(compared(tmp_path, engine))
    assert cells(page, "fedavg")[0][1] == "50.50 ± 0.71"


def test_a_failure_is_told_and_counts_as_nothing(tmp_path: Path) -> None:
    """fedavg's seeds end at 0 (failed) and 0.61: 30.5 ± 43.13; fedavgm is first."""

    def failure(trial: Trial) -> str | None:
        return "the loss became NaN" if trial.label == "fedavg" and trial.seed == 0 else None

    comparison = compared(tmp_path, FormulaEngine(failure=failure))
    page = markdown(comparison)
    assert cells(page, "fedavg")[0][1] == "30.50 ± 43.13"
    assert "- fedavg, seed 0: the loss became NaN." in page
    assert "1 more of the trials failed, at points that were not chosen" in page
    assert comparison.rows[0].label == "fedavgm"


def test_joules_have_a_column_where_the_device_tells_them(tmp_path: Path) -> None:
    class Metered(FormulaEngine):
        def run(self, trial: Trial, report: Report) -> Outcome:
            return replace(super().run(trial, report), joules=1000.0 + 100 * trial.seed)

    assert "joules" not in markdown(compared(tmp_path, FormulaEngine()))
    assert cells(markdown(compared(tmp_path, Metered())), "fedavg")[1][-1] == "1050 ± 71"


def test_under_the_table_stands_what_is_needed_to_judge_it(tmp_path: Path) -> None:
    text = SMALL.replace("[0.1, 0.2] }", '[0.1] }\nfewer_points_because = "its rate is known"')
    page = markdown(
        compared(tmp_path, FormulaEngine(), text.replace("rounds = 4", "rounds = 4\niterate_average = true"))
    )
    for said in (
        "fedavg has fewer points: its rate is known.",
        "Task digits, partition shards:2, 8 workers, all in every round; 10 local steps of 32 examples",
        "mean final accuracy on 100 validation examples",
        "(seeds: 0 and 1)",
        f"device paper, fed-sophia {__version__}, threads 1",
        "average of its versions",
    ):
        assert said in page


def test_both_exchanges_of_a_two_phase_algorithm_are_rounds_and_it_is_said(tmp_path: Path) -> None:
    """8 rounds of its own are 4 steps; it is at 0.5 after round 6: 6 s, 6·2 MB up."""
    done = '[[algorithms]]\nname = "done"\nrounds = 8\ngrid = { richardson_rate = [0.001, 0.002] }\n'
    engine = FormulaEngine(lambda trial, number: number / 12, lambda trial, number: number / 12)
    page = markdown(compared(tmp_path, engine, SMALL + done))
    accuracy, cost = cells(page, "done")
    assert accuracy[2] == "6.0 ± 0.0"
    assert cost[1] == "12 ± 0"
    assert "- done needs 2 exchanges for each of its steps; all of them are counted as rounds." in page
    assert page.count("exchanges for each") == 1


def test_a_sweep_that_has_just_begun_says_what_is_missing(tmp_path: Path) -> None:
    scenario = load_scenario(scenario_file(tmp_path))
    engine, evaluated = FormulaEngine(), []
    trial = trials_of(scenario)[0]
    outcome = engine.run(trial, evaluated.append)
    result = result_of(trial, engine, evaluated, outcome)
    comparison = compare(scenario, engine.name, {trial.key: result})
    assert comparison is not None
    page = markdown(comparison)
    assert cells(page, "fedavg")[0][-1] == "1 of 2"
    assert "Not yet tried: fedavgm." in page
    assert compare(scenario, engine.name, {}) is None


def test_results_that_another_scenario_trained_count_where_the_trial_is_the_same(tmp_path: Path) -> None:
    """The other has a third point for each algorithm, which nobody trained."""
    small = load_scenario(scenario_file(tmp_path))
    Sweep(trials_of(small), FormulaEngine(), tmp_path, Listener()).run()
    text = SMALL.replace("[0.1, 0.2]", "[0.1, 0.2, 0.3]").replace(
        "1.0 }]", "1.0 }, { server_learning_rate = 2.0 }]"
    )
    other = load_scenario(scenario_file(tmp_path, text, "other"))
    stored = load_results(tmp_path).by_engine("formula")
    first, second = (compare(scenario, "formula", stored) for scenario in (small, other))
    assert first is not None and second is not None
    assert [(row.label, row.accuracy, row.varied) for row in second.rows] == [
        (row.label, row.accuracy, row.varied) for row in first.rows
    ]
    assert {row.label: (row.points_tried, row.points) for row in second.rows} == {
        "fedavg": (2, 3),
        "fedavgm": (2, 3),
    }


def a_row(
    label: str, mean: float, deviation: float | None, count: int = 3, failures: tuple[str, ...] = ()
) -> Row:
    return Row(
        label=label,
        algorithm="fedavg",
        accuracy=Spread(mean, deviation, count),
        seeds=tuple(range(count)),
        targets=(),
        varied={},
        on_edge={},
        points_tried=1,
        points=1,
        chosen_by_seeds=(),
        seconds=None,
        examples_per_second=None,
        joules=None,
        failures=failures,
    )


def test_two_samples_are_pooled_by_their_degrees_of_freedom() -> None:
    """(2·0.02² + 1·0.05²)/3 = (0.0008 + 0.0025)/3 = 0.0011, whose root it is."""
    assert pooled_deviation(Spread(0.8, 0.02, 3), Spread(0.7, 0.05, 2)) == pytest.approx(0.0011**0.5)
    assert pooled_deviation(Spread(0.8, None, 1), Spread(0.7, None, 1)) is None


def test_what_lies_within_a_pooled_deviation_of_the_best_is_called_not_significant() -> None:
    """s = 0.01 for both: 0.795 is within 0.01 of 0.80, 0.785 is not."""
    said = significance([a_row("a", 0.80, 0.01), a_row("b", 0.795, 0.01), a_row("c", 0.785, 0.01)])
    assert said == (
        "b (n = 3) is within one pooled standard deviation of a (n = 3), the best: not a significant "
        "difference at so few seeds. c (n = 3) is more than one pooled standard deviation below it."
    )
    assert significance([a_row("a", 0.8, 0.01), a_row("b", 0.7, 0.01), a_row("c", 0.6, 0.01)]) == (
        "b (n = 3) and c (n = 3) are more than one pooled standard deviation below a (n = 3), the best."
    )


def test_one_seed_tells_nothing_apart() -> None:
    said = significance([a_row("a", 0.8, None, 1), a_row("b", 0.1, None, 1)])
    assert said == "With one seed no difference is known to be more than chance."


def test_an_algorithm_with_one_seed_is_not_compared_with_others_that_have_three() -> None:
    said = significance([a_row("a", 0.8, 0.01), a_row("b", 0.7, 0.01), a_row("c", 0.69, None, 1)])
    assert said == (
        "b (n = 3) is more than one pooled standard deviation below a (n = 3), the best of those that can "
        "be compared. Not compared, for that takes two seeds or more and no failure: c (n = 1)."
    )
    assert significance([a_row("a", 0.8, None, 1), a_row("b", 0.7, 0.01)]) == (
        "No difference can be judged yet. Not compared, for that takes two seeds or more and no failure: "
        "a (n = 1)."
    )


def test_a_seed_that_failed_makes_no_algorithm_look_near_the_best() -> None:
    """0, 0.8 and 0.8 have s = 0.46, within which 0.53 and 0.85 would lie."""
    failed = a_row("b", 0.5333, 0.4619, failures=("seed 0: the loss became NaN",))
    assert significance([a_row("a", 0.85, 0.01), a_row("c", 0.845, 0.01, 2), failed]) == (
        "c (n = 2) is within one pooled standard deviation of a (n = 3), the best of those that can be "
        "compared: not a significant difference at so few seeds. Not compared, for that takes two seeds or "
        "more and no failure: b (n = 3, 1 failed)."
    )


def test_what_an_algorithm_has_of_its_own_is_told_and_what_all_have_is_not(tmp_path: Path) -> None:
    own = 'local_steps = 20\nbatch_size = 32\nrounds = 6\ncombiners = { delta = "median" }\nfixed'
    page = markdown(compared(tmp_path, FormulaEngine(), SMALL.replace("fixed", own)))
    assert (
        "- fedavgm has its own: 20 local steps, 6 rounds, the combiner median for delta, "
        "learning_rate 0.1 at every point.\n"
    ) in page
    assert page.count("has its own") == 1


def test_how_its_bundles_travel_is_told(tmp_path: Path) -> None:
    text = SMALL.replace("[0.1, 0.2] }", '[0.1, 0.2] }\nencodings = { delta = "bf16" }')
    assert "- fedavg has its own: delta as bf16.\n" in markdown(compared(tmp_path, FormulaEngine(), text))


def test_a_choice_on_the_edge_of_its_grid_is_told(tmp_path: Path) -> None:
    """fedavg's best is the greatest of its rates, then the middle one; fedavgm's the first of two."""
    page = markdown(compared(tmp_path, FormulaEngine()))
    assert (
        "- On the edge of its grid: fedavg (learning_rate 0.2) and fedavgm (server_learning_rate 0.5); "
        "the best may lie beyond.\n"
    ) in page
    inner = SMALL.replace("[0.1, 0.2]", "[0.1, 0.2, 0.05]").replace(
        "1.0 }]", "1.0 }, { server_learning_rate = 2.0 }]"
    )
    engine = FormulaEngine(validation=lambda trial, number: -abs(by_rate(trial, 0) - 0.1))
    assert "On the edge of its grid: fedavgm (" in markdown(compared(tmp_path, engine, inner))


def test_a_switch_has_no_edge(tmp_path: Path) -> None:
    kept = (
        '[[algorithms]]\nname = "local-adamw"\nfixed = { learning_rate = 0.3 }\n'
        "grid = { keep_state = [0, 1] }\n"
    )
    page = markdown(compared(tmp_path, FormulaEngine(), SMALL + kept))
    assert "local-adamw (keep_state" not in page
    assert "local-adamw has its own: learning_rate 0.3 at every point." in page


def test_the_spread_is_the_sample_s() -> None:
    """1, 2, 3: mean 2, s² = (1+0+1)/2 = 1."""
    assert spread([1.0, 2.0, 3.0]) == Spread(2.0, 1.0, 3)
    assert spread([1.0]) == Spread(1.0, None, 1)
    assert spread([]) is None
