# SPDX-License-Identifier: Apache-2.0
"""Results: what is computed of one, and files of them that survive a kill."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from fed_sophia import __version__
from fed_sophia.experiments.engine import Evaluated
from fed_sophia.experiments.results import Evaluations, result_of
from fed_sophia.experiments.results_file import Stored, append_result, load_results
from fed_sophia.experiments.scenario import load_scenario
from fed_sophia.experiments.trials import trials_of
from protocol.errors import InvalidUsage
from tests.fed_sophia.experiments.formula_engine import FormulaEngine, a_result, scenario_file

ROOT = Path(__file__).parents[3]


def test_the_final_accuracy_is_the_mean_of_the_last_evaluations() -> None:
    result = a_result((0.1, 0.6, 0.8), (0.1, 0.4, 0.5))
    assert result.final_accuracy(2) == pytest.approx(0.7)
    assert result.final_validation_accuracy(2) == pytest.approx(0.45)
    assert result.final_accuracy(5) == pytest.approx(0.5)  # of those there are


def test_a_target_is_reached_by_the_first_evaluation_that_meets_it_even_if_later_ones_fall_back() -> None:
    result = a_result((0.4, 0.8, 0.7))
    assert [result.reached(target) for target in (0.4, 0.5, 0.8, 0.81)] == [0, 1, 1, None]


def test_a_trial_that_failed_is_worth_nothing_whatever_it_had_reached() -> None:
    result = a_result((0.8, 0.9), failure="the loss became NaN")
    assert result.final_accuracy(1) == result.final_validation_accuracy(1) == 0
    assert result.reached(0.5) is None


def test_five_digits_are_kept_and_a_loss_that_is_no_number_is_none() -> None:
    evaluated = Evaluated(2, 1.23456789, 10, 20, {"test_accuracy": 0.123456789, "test_loss": math.nan})
    kept = Evaluations.of([evaluated])
    assert (kept.seconds, kept.test_accuracy, kept.test_loss) == ((1.2346,), (0.12346,), (None,))
    assert kept.validation_accuracy == (None,)


def test_a_line_of_fifty_evaluations_is_small(tmp_path: Path) -> None:
    append_result(tmp_path / "small.jsonl", a_result(tuple(0.80001 + place / 1e5 for place in range(50))))
    assert (tmp_path / "small.jsonl").stat().st_size <= 4096


def test_results_come_back_as_they_were_written(tmp_path: Path) -> None:
    first, second = a_result(seed=1), a_result(seed=2, failure="no", joules=3.5)
    append_result(tmp_path / "small.jsonl", first)
    append_result(tmp_path / "other.jsonl", second)
    assert load_results(tmp_path).results == (second, first)
    assert load_results(tmp_path).by_engine("formula") == {first.key: first, second.key: second}
    assert load_results(tmp_path).by_engine("wire") == {}


def test_a_line_says_what_was_trained_and_by_which_version(tmp_path: Path) -> None:
    trial = trials_of(load_scenario(scenario_file(tmp_path)))[0]
    engine, evaluated = FormulaEngine(), list[Evaluated]()
    result = result_of(trial, engine, evaluated, engine.run(trial, evaluated.append))
    append_result(tmp_path / "small.jsonl", result)
    (line,) = (tmp_path / "small.jsonl").read_text().splitlines()
    assert json.loads(line)["trial"] == trial.described
    assert json.loads(line)["environment"] == {"device": "paper", "threads": 1, "fed-sophia": __version__}
    assert load_results(tmp_path).results == (result,)


def test_on_a_full_disk_a_result_is_refused_and_those_before_it_stay(tmp_path: Path) -> None:
    """The file may grow by 100 bytes: the first write takes so many and no more."""
    path = tmp_path / "small.jsonl"
    append_result(path, a_result(seed=1))
    code = (
        "import resource\n"
        "from pathlib import Path\n"
        "from fed_sophia.experiments.results_file import append_result\n"
        "from tests.fed_sophia.experiments.formula_engine import a_result\n"
        f"path, size = Path({str(path)!r}), {path.stat().st_size + 100}\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))\n"
        "append_result(path, a_result(seed=2))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    assert "OSError: [Errno 27] File too large" in ended.stderr
    assert load_results(tmp_path) == Stored((a_result(seed=1),), (path,))
    append_result(path, a_result(seed=2))
    assert load_results(tmp_path) == Stored((a_result(seed=1), a_result(seed=2)))


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert load_results(tmp_path / "absent").results == ()


def test_a_line_without_its_end_does_not_count_and_the_next_takes_its_place(tmp_path: Path) -> None:
    path = tmp_path / "small.jsonl"
    append_result(path, a_result(seed=1))
    whole = path.read_bytes()
    for cut in (1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole + whole[:cut])
        assert load_results(tmp_path).torn == (path,)
        assert load_results(tmp_path).results == (a_result(seed=1),)
        assert path.read_bytes() == whole + whole[:cut]  # who reads changes nothing
        append_result(path, a_result(seed=2))
        assert load_results(tmp_path).torn == ()
        assert load_results(tmp_path).results == (a_result(seed=1), a_result(seed=2))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"schema_version": 2}', "line 2: schema_version 2: expected 1"),
        ('{"schema_version": 1}', "line 2: key: Field required"),
        ("{}", "line 2: expected the result of a trial"),
        ("[]", "line 2: expected the result of a trial"),
        ("", "line 2: expected the result of a trial"),
        ("half a li", "line 2: expected the result of a trial"),
    ],
)
def test_a_line_that_is_no_result_is_refused_by_file_and_line(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "small.jsonl"
    append_result(path, a_result())
    path.write_bytes(path.read_bytes() + line.encode() + b"\n")
    with pytest.raises(InvalidUsage) as refusal:
        load_results(tmp_path)
    assert f"{path}, {said}" in refusal.value.detail
