# SPDX-License-Identifier: Apache-2.0
"""`fed-sophia experiment`: a sweep is trained once, told to people and machines, and goes on after a stop."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fed_sophia.cli import run_command
from fed_sophia.experiments.engine import IN_PROCESS
from fed_sophia.experiments.results_file import load_results
from fed_sophia.experiments.scenario import load_scenario
from fed_sophia.experiments.sweep import Sweep
from fed_sophia.experiments.trials import trials_of
from tests.fed_sophia.experiments.formula_engine import SMALL, FormulaEngine, scenario_file
from tests.fed_sophia.experiments.test_attack_table import ATTACKED, by_trial
from tests.fed_sophia.experiments.test_sweep import Listener

ROOT = Path(__file__).parents[3]
TWO_ROUNDS = SMALL.replace("rounds = 4", "rounds = 2").replace("seeds = [0, 1]", "seeds = [0]")


class InProcess(FormulaEngine):
    """Its results pass for those of the stacked engine."""

    name = IN_PROCESS


@pytest.fixture
def scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    return scenario_file(tmp_path)


def trained(path: str, folder: Path, seeds: tuple[int, ...] = (0, 1)) -> None:
    Sweep(trials_of(load_scenario(path), seeds=seeds), InProcess(), folder, Listener()).run()


def said(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_what_has_its_results_is_shown_and_not_trained(
    scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(scenario, tmp_path / "experiment-results")
    assert run_command(["experiment", "run", scenario, "--in-process"]) == 0
    page = capsys.readouterr().out
    assert page.startswith("0 trials to train; 8 have their results in experiment-results already\n# Small\n")
    assert "| fedavg    | 60.50 ± 0.71 " in page
    written = {path.name for path in (tmp_path / "experiment-results").iterdir()}
    assert written >= {"small.jsonl", "small-in-process.md"}


def test_the_chosen_point_alone_is_left_once_one_seed_has_chosen(
    scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """8 trials in all; after seed 0 the chosen points of two algorithms are left for seed 1."""
    trained(scenario, tmp_path / "out", seeds=(0,))
    chosen = trials_of(load_scenario(scenario), seeds=(1,), points={"fedavg": 1, "fedavgm": 0})
    Sweep(chosen, InProcess(), tmp_path / "out", Listener()).run()
    arguments = ["experiment", "run", scenario, "--in-process", "--results", "out", "--json"]
    assert run_command([*arguments, "--points", "chosen"]) == 0
    begin, *_, summary = said(capsys)
    assert (begin["trials"], begin["skipped"]) == (0, 4)
    assert summary["summary"] is True


def test_nothing_is_called_chosen_while_points_are_untried(
    scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = trials_of(load_scenario(scenario), seeds=(0,))[:3]  # fedavg at both of its points, fedavgm at one
    Sweep(first, InProcess(), tmp_path / "out", Listener()).run()
    arguments = ["experiment", "run", scenario, "--in-process", "--results", "out", "--points", "chosen"]
    assert run_command(arguments) == 2
    assert (
        "--points chosen: small, fedavgm: no result at 1 of 2 points (server_learning_rate 1); run it with "
        "--points all for at least one seed first"
    ) in capsys.readouterr().err


def test_trials_that_are_the_same_count_once(
    scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = scenario_file(tmp_path, SMALL.replace("Small", "Other"), "other")
    trained(scenario, tmp_path / "out")
    arguments = ["experiment", "run", scenario, other, "--in-process", "--results", "out", "--json"]
    assert run_command(arguments) == 0
    begin = said(capsys)[0]
    assert (begin["trials"], begin["skipped"]) == (0, 8)


def test_parts_share_no_trial_and_have_all_of_them_whatever_was_trained_between(
    scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three parts of eight trials; the first two are trained already."""
    trials = trials_of(load_scenario(scenario))
    Sweep(trials[:2], InProcess(), tmp_path / "out", Listener()).run()
    arguments = ["experiment", "run", scenario, "--in-process", "--results", "out", "--json", "--part"]
    Sweep(trials[3::3], InProcess(), tmp_path / "out", Listener()).run()
    assert run_command([*arguments, "1/3"]) == 0
    begin, summary = said(capsys)
    assert (begin["trials"], begin["skipped"]) == (0, 3)
    assert (summary["part"], summary["comparisons"]) == ("1/3", [])
    Sweep([*trials[4::3], *trials[2::3]], InProcess(), tmp_path / "out", Listener()).run()
    for part, skipped in (("2/3", 3), ("3/3", 2), ("8/8", 1), ("1/1", 8)):
        assert run_command([*arguments, part]) == 0
        begin, _ = said(capsys)
        assert (begin["trials"], begin["skipped"]) == (0, skipped), part


@pytest.mark.parametrize("part", ["0/3", "4/3", "3", "a/b", "1/", "-1/3", "1/0"])
def test_a_part_that_is_none_is_refused(scenario: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["experiment", "run", scenario, "--in-process", f"--part={part}"]) == 2
    assert f"--part '{part}': expected K/N with K from 1 to N" in capsys.readouterr().err


def test_a_scenario_of_attacks_is_shown_in_tables_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = scenario_file(tmp_path, ATTACKED, "attacked")
    Sweep(trials_of(load_scenario(path)), InProcess(by_trial, by_trial), tmp_path / "out", Listener()).run()
    assert run_command(["experiment", "report", path, "--results", "out"]) == 0
    assert "| hessian-huge " in capsys.readouterr().out
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "attacked.jsonl",
        "attacked-in-process.md",
    }


def test_two_scenarios_of_one_name_are_refused_together(
    scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    other = scenario_file(tmp_path / "elsewhere")
    for command in ("run", "report"):
        assert run_command(["experiment", command, scenario, other]) == 2
        assert f"scenario {other}: two are called 'small'" in capsys.readouterr().err


def test_a_machine_is_told_the_rows_and_the_files(
    scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(scenario, tmp_path / "in")
    assert run_command(["experiment", "report", scenario, "--results", "in", "--out", "new", "--json"]) == 0
    *_, summary = said(capsys)
    (comparison,) = summary["comparisons"]  # type: ignore[misc]
    assert comparison["engine"] == "in-process"
    assert [row["label"] for row in comparison["rows"]] == ["fedavg", "fedavgm"]
    assert comparison["rows"][0]["accuracy"]["mean"] == pytest.approx(0.605)
    assert "new/small-in-process.md" in comparison["files"]
    assert all(Path(file).is_file() for file in comparison["files"])


def test_a_torn_line_is_told_of(scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(scenario, tmp_path / "out")
    file = tmp_path / "out" / "small.jsonl"
    file.write_bytes(file.read_bytes()[:-5])
    assert run_command(["experiment", "report", scenario, "--results", "out"]) == 0
    assert "out/small.jsonl: the last line has no end" in capsys.readouterr().out


def test_a_list_tells_what_has_been_trained(
    scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "benchmarks" / "experiments"
    folder.mkdir(parents=True)
    path = scenario_file(folder, name="here")
    trained(path, folder / "results", seeds=(0,))
    assert run_command(["experiment", "list", "--json"]) == 0
    listed = {event.get("name"): event for event in said(capsys)}
    assert (listed["here"]["trials"], listed["here"]["done"]) == (8, {"in-process": 4})
    assert listed["mlp-shards2"]["done"] == {"in-process": 0}


def test_without_results_there_is_no_table(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["experiment", "report", scenario]) == 0
    assert capsys.readouterr().out == "There are no results yet.\n"


def test_after_ctrl_c_what_has_ended_is_kept_and_the_way_on_is_told(tmp_path: Path) -> None:
    """The first trial ends after two rounds; Ctrl-C comes while the second is at its ten thousand."""
    endless = TWO_ROUNDS.replace("fixed = ", "rounds = 10_000\nfixed = ")
    command = [sys.executable, "-m", "fed_sophia", "experiment", "run", scenario_file(tmp_path, endless)]
    options = ["--in-process", "--results", str(tmp_path / "out"), "--json"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line).get("round") == 4:
                process.send_signal(signal.SIGINT)
                break
        *_, interrupted, summary = [json.loads(line) for line in process.stdout]
    assert process.returncode == 130
    assert interrupted == {"event": "interrupted", "results": str(tmp_path / "out")}
    assert summary == {"summary": True, "interrupted": "SIGINT"}
    stored = load_results(tmp_path / "out")
    assert [result.label for result in stored.results] == ["fedavg"]
    assert stored.torn == ()


@pytest.mark.parametrize("how", ["--in-process", "--device=cpu"])
def test_digits_are_learned_by_either_engine(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = scenario_file(
        tmp_path, TWO_ROUNDS.replace("[0.1, 0.2]", "[0.3, 0.5]").replace("shards:2", "iid"), "brief"
    )
    arguments = ["experiment", "run", path, how, "--only", "fedavg", "--results", "out", "--json"]
    assert run_command(arguments) == 0
    first = load_results(tmp_path / "out").results
    assert [len(result.evaluations.round) for result in first] == [1, 1]
    assert all(result.failure is None and result.examples == 2 * 8 * 10 * 32 for result in first)
    assert all(result.final_accuracy(1) > 0.5 for result in first)  # chance is 0.1
    capsys.readouterr()
    assert run_command(arguments) == 0
    assert said(capsys)[0]["trials"] == 0
    assert load_results(tmp_path / "out").results == first
