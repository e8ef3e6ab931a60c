# SPDX-License-Identifier: Apache-2.0
"""Sweeps: what is done is not done again, and what is broken off leaves nothing half."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from fed_sophia.experiments.engine import Outcome, Report
from fed_sophia.experiments.results import Result
from fed_sophia.experiments.results_file import load_results
from fed_sophia.experiments.scenario import load_scenario
from fed_sophia.experiments.sweep import Progress, Sweep, seconds_left, untried
from fed_sophia.experiments.sweep_view import duration_text, progress_text, sweep_shown
from fed_sophia.experiments.trials import Trial, trials_of
from fed_sophia.output import HumanOutput
from tests.fed_sophia.experiments.formula_engine import SMALL, FormulaEngine, scenario_file


class Listener:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[Progress] = []
        self.results: list[Result] = []

    def progress(self, progress: Progress) -> None:
        self.told.append(progress)

    def ended(self, number: int, of: int, trial: Trial, result: Result) -> None:
        self.results.append(result)


class Stopped(FormulaEngine):
    """Is stopped by Ctrl-C in the middle of its third trial."""

    def run(self, trial: Trial, report: Report) -> Outcome:
        outcome = super().run(trial, report)
        if len(self.trained) == 3:
            raise KeyboardInterrupt
        return outcome


@pytest.fixture
def trials(tmp_path: Path) -> list[Trial]:
    return trials_of(load_scenario(scenario_file(tmp_path)))


def test_a_sweep_that_was_stopped_goes_on_where_it_was(trials: list[Trial], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Sweep(trials, Stopped(), tmp_path, Listener()).run()
    done = load_results(tmp_path).by_engine("formula")
    assert list(done) == [trial.key for trial in trials[:2]]
    engine = FormulaEngine()
    Sweep(untried(trials, done), engine, tmp_path, Listener()).run()
    assert engine.trained == trials[2:]
    results = load_results(tmp_path)
    assert [result.key for result in results.results] == [trial.key for trial in trials]
    assert untried(trials, results.by_engine("formula")) == []
    assert untried(trials, results.by_engine("wire")) == trials


def test_equal_trials_are_trained_once(trials: list[Trial], tmp_path: Path) -> None:
    other = trials_of(load_scenario(scenario_file(tmp_path, SMALL.replace("Small", "Other"), "other")))
    assert untried([*trials, *other], ()) == trials


def test_each_scenario_has_a_file_of_its_own(trials: list[Trial], tmp_path: Path) -> None:
    Sweep(trials[:1], FormulaEngine(), tmp_path / "new" / "folder", Listener()).run()
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["small.jsonl"]


def test_progress_tells_the_trial_the_round_and_the_time_that_is_left(
    trials: list[Trial], tmp_path: Path
) -> None:
    """The clock moves 10 s with each look. Two trials of 4 rounds; a report after rounds 2 and 4 of each.

    Begin 0 s, first trial 10 s; round 2: 20 s and a quarter done, 60 s left; round 4: 30 s and half, 30 s.
    """
    looks = iter(range(0, 1000, 10))
    listener = Listener()
    Sweep(trials[:2], FormulaEngine(), tmp_path, listener, now_s=lambda: float(next(looks))).run()
    assert [(each.number, each.round, each.seconds_left) for each in listener.told[:3]] == [
        (1, 0, None),
        (1, 2, 60.0),
        (1, 4, 30.0),
    ]
    assert progress_text(listener.told[1]) == (
        "1 of 2: small, fedavg (learning_rate 0.1), seed 0: round 2 of 4, 30.0%; 60 s left"
    )


def test_into_a_pipe_a_sweep_says_how_each_trial_ended(trials: list[Trial], tmp_path: Path) -> None:
    page = io.StringIO()
    with sweep_shown(HumanOutput(Console(file=page, soft_wrap=True)), {"small": 1}) as view:
        Sweep(trials[:2], FormulaEngine(failure=lambda trial: "it broke"), tmp_path, view).run()
    assert page.getvalue().splitlines() == [
        "1 of 2: small, fedavg (learning_rate 0.1), seed 0: it broke",
        "2 of 2: small, fedavgm (learning_rate 0.1, server_learning_rate 0.5), seed 0: it broke",
    ]


def test_the_rest_is_estimated_from_what_was_done() -> None:
    assert seconds_left(10.0, 1.0, 4.0) == 30.0
    assert seconds_left(10.0, 0.0, 4.0) is None
    assert [duration_text(seconds) for seconds in (40, 720, 12_600)] == ["40 s", "12 min", "3.5 h"]
