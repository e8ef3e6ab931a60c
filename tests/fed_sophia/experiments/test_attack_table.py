# SPDX-License-Identifier: Apache-2.0
"""Scenarios of attacks: what their files ask for, and the tables that come of it."""

from pathlib import Path

import pytest

from fed_sophia.experiments.attack_table import attack_page
from fed_sophia.experiments.scenario import Scenario, load_scenario
from fed_sophia.experiments.trials import Trial, trials_of
from protocol.errors import InvalidUsage
from tests.fed_sophia.experiments.formula_engine import FormulaEngine, scenario_file
from tests.fed_sophia.experiments.test_comparison import cells, compared

ATTACKED = """
title = "Attacked"
task = "digits"
partition = "iid"
workers = 8
rounds = 4
validation = 100
evaluate_every = 2
final_evaluations = 1
seeds = [0, 1]
attackers = 2
attacks = ["nan", "hessian-huge"]
admission = [true, false]

[[algorithms]]
name = "fed-sophia-shared"
label = "mean"

[[algorithms]]
name = "fed-sophia-shared"
label = "median"
combiners = { delta = "median" }
max_delta_norm = 2.5
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    return load_scenario(scenario_file(tmp_path, ATTACKED))


def by_trial(trial: Trial, round_number: int) -> float:
    """90 % in honest company, 85 % alone; 80 % where updates are judged and 20 % where not; a seed is 2 %."""
    known = {None: 0.9, "absent": 0.85}
    return known.get(trial.attack, 0.8 if trial.admission else 0.2) + trial.seed / 50


def test_every_algorithm_meets_every_attack_beside_two_rows_without(scenario: Scenario) -> None:
    assert [each.label for each in scenario.algorithms] == [
        "mean",
        "mean: absent",
        "mean: nan",
        "mean: nan, all admitted",
        "mean: hessian-huge",
        "mean: hessian-huge, all admitted",
        "median",
        "median: absent",
        "median: nan",
        "median: nan, all admitted",
        "median: hessian-huge",
        "median: hessian-huge, all admitted",
    ]
    trials = {trial.label: trial for trial in trials_of(scenario, seeds=[0])}
    honest, unjudged = trials["median"], trials["median: nan, all admitted"]
    assert (honest.attack, honest.attackers, honest.max_delta_norm) == (None, 0, 2.5)
    assert (unjudged.attack, unjudged.attackers, unjudged.admission) == ("nan", 2, False)
    assert unjudged.combiners == {"delta": "median"}


def test_only_what_sets_a_trial_apart_is_part_of_its_key(scenario: Scenario) -> None:
    trials = {trial.label: trial.described for trial in trials_of(scenario, seeds=[0])}
    said = ("attack", "attackers", "admission", "max_delta_norm")
    apart = {label: {name: each[name] for name in said if name in each} for label, each in trials.items()}
    assert apart["mean"] == {}
    assert apart["median"] == {"max_delta_norm": 2.5}
    assert apart["mean: absent"] == {"attack": "absent", "attackers": 2}
    assert apart["mean: nan, all admitted"] == {"attack": "nan", "attackers": 2, "admission": False}
    assert len({trial.key for trial in trials_of(scenario)}) == 24


def test_the_tables_have_a_row_for_each_attack_and_say_what_was_ruined(tmp_path: Path) -> None:
    """0.8 and 0.82 have the mean 81 and s = 2/√2 = 1.4; with one of two ruined (0.8 + 0)/2, s = 80/√2."""

    def ruin(trial: Trial) -> str | None:
        ruined = trial.attack == "nan" and (
            not trial.admission or (trial.seed, trial.label[:3]) == (1, "med")
        )
        return "round 1: NaN" if ruined else None

    page = attack_page(compared(tmp_path, FormulaEngine(by_trial, by_trial, ruin), ATTACKED))
    assert cells(page, "none")[0][1:] == ["91.0 ± 1.4", "91.0 ± 1.4"]
    assert cells(page, "none, 6 workers")[1][1:] == ["86.0 ± 1.4", "86.0 ± 1.4"]
    judged, unjudged = cells(page, "nan")
    assert judged[1:] == ["81.0 ± 1.4", "40.0 ± 56.6 (1/2 ruined)"]
    assert unjudged[1:] == ["ruined", "ruined"]
    judged, unjudged = cells(page, "hessian-huge")
    assert (judged[1:], unjudged[1:]) == (["81.0 ± 1.4"] * 2, ["21.0 ± 1.4"] * 2)
    assert page.index("Updates are judged") < page.index("All updates count:")
    assert "the last 2 workers are dishonest" in page
    assert "nan: NaN for every coordinate of the delta." in page


def test_what_was_not_tried_has_no_number(tmp_path: Path) -> None:
    only_judged = ATTACKED.replace("[true, false]", "[true]")
    comparison = compared(tmp_path, FormulaEngine(by_trial, by_trial), only_judged)
    assert "All updates count" not in attack_page(comparison)
    lacking = [row for row in comparison.rows if row.label != "median: nan"]
    page = attack_page(type(comparison)(**{**vars(comparison), "rows": lacking}))
    assert cells(page, "nan")[0][1:] == ["81.0 ± 1.4", "–"]


@pytest.mark.parametrize(
    ("written", "instead", "said"),
    [
        ("attackers = 2", "attackers = 8", "attackers: 8 of 8 workers leave nobody honest"),
        ("attackers = 2", "", "attackers: 0 make no attack"),
        ("combiners", 'encodings = { delta = "bf16" }\ncombiners', "forged values are not encoded"),
        ('"nan", ', '"none", ', "attack 'none': expected one of absent, sign-flip"),
        ('"nan", ', '"nan", "nan", ', "two have the label 'mean: nan'"),
        ('"nan", ', '"absent", ', "two have the label 'mean: absent'"),
        (
            '"fed-sophia-shared"\nlabel = "mean"',
            '"fedavg"\nlabel = "mean"',
            "fedavg sends no bundle 'hessian'",
        ),
        ("max_delta_norm = 2.5", "max_delta_norm = 0.0", "median: max_delta_norm: "),
        ("[true, false]", "[1]", "admission: 0: "),
    ],
)
def test_a_wrong_file_is_refused_by_file_and_field(
    written: str, instead: str, said: str, tmp_path: Path
) -> None:
    assert written in ATTACKED
    path = scenario_file(tmp_path, ATTACKED.replace(written, instead))
    with pytest.raises(InvalidUsage) as refusal:
        load_scenario(path)
    assert path in refusal.value.detail
    assert said in refusal.value.detail
