# SPDX-License-Identifier: Apache-2.0
"""A round that costs more than was accepted is told of, in a sentence and by the exit code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.baseline import (
    BASELINE,
    FIGURES,
    Costs,
    Figure,
    Verdict,
    compare,
    complaints,
    figures_of,
    read,
    write,
)
from benchmarks.exchange.floors import HonestRound
from benchmarks.exchange.rounds import Figures, Plan
from benchmarks.quick import PLANS, conclude
from benchmarks.round_cost import row
from fed_sophia.output import JsonOutput
from protocol.errors import InvalidUsage

ROOT = Path(__file__).parents[2]
EACH_FIGURE = pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)


def costs(**changed: float) -> dict[str, dict[str, float]]:
    """One row, in which every figure is 10 but those that are given."""
    return {"25 MB × 4": {figure.name: 10.0 for figure in FIGURES} | changed}


def complained(now: Costs, accepted: Costs) -> list[str]:
    return complaints(compare(now, accepted))


def measured() -> Figures:
    """Rounds of 2 s, 3 models moved, 6 and 3 s of a core, and 50 MB above idle."""
    return Figures([90.0, 2.0, 2.0], 12e6, 6.0, 3.0, 10_000_000, 60_000_000, 1.0, 100, 0, 0.0)


def test_what_is_compared_is_over_the_floors_of_the_same_run() -> None:
    found = row(Plan(1, 4, 3), measured(), [0.5, 0.5], [HonestRound(1.0, 1.5), HonestRound(1.0, 1.5)])
    assert figures_of(found) == {
        "over_floor": 2.0,
        "over_tcp": 4.0,
        "server_cpu_over_floor": 4.0,
        "workers_cpu_over_floor": 2.0,
        "server_memory_mb": 50.0,
        "models_moved": 3.0,
    }
    assert set(figures_of(found)) == {figure.name for figure in FIGURES}


def test_what_was_accepted_is_fine() -> None:
    assert [each.verdict for each in compare(costs(), costs())] == [Verdict.FINE] * len(FIGURES)


@EACH_FIGURE
def test_a_figure_may_rise_as_far_as_its_tolerance_and_no_further(figure: Figure) -> None:
    most = 10 * (1 + figure.may_rise)
    assert complained(costs(**{figure.name: most}), costs()) == []
    (sentence,) = complained(costs(**{figure.name: most * 1.001}), costs())
    assert sentence.startswith(f"25 MB × 4, {figure.title}: ")


@EACH_FIGURE
def test_only_bytes_may_not_fall_either(figure: Figure) -> None:
    halved = complained(costs(**{figure.name: 5.0}), costs())
    assert len(halved) == (1 if figure.name == "models_moved" else 0)


def test_bytes_may_differ_by_one_percent_either_way() -> None:
    accepted = costs(models_moved=2.0)
    verdicts = {
        moved: complained(costs(models_moved=moved), accepted) for moved in (1.979, 1.981, 2.019, 2.021)
    }
    assert [moved for moved, said in verdicts.items() if said] == [1.979, 2.021]


def test_a_complaint_names_row_figure_accepted_and_allowed() -> None:
    (sentence,) = complained(costs(server_cpu_over_floor=20.25), costs())
    assert sentence == ("25 MB × 4, server CPU / floor: 20.25, where 10 is accepted, and ≤ 15 allowed")
    (sentence,) = complained(costs(models_moved=3), costs(models_moved=2))
    assert sentence == ("25 MB × 4, models moved: 3, where 2 is accepted, and 1.98 – 2.02 allowed")


def test_what_is_no_number_is_never_fine() -> None:
    assert len(complained(costs(over_floor=float("nan")), costs())) == 1


def test_a_row_and_a_figure_that_were_never_accepted_are_told_of() -> None:
    assert all("none has been accepted; --accept" in said for said in complained(costs(), {}))
    assert len(complained(costs(), {})) == len(FIGURES)
    without = costs()
    del without["25 MB × 4"]["over_tcp"]
    assert complained(costs(), without) == [
        "25 MB × 4, time / TCP: 10, and none has been accepted; --accept does so"
    ]


def test_what_was_not_measured_is_not_judged() -> None:
    """As without root, when others' bytes are on the loopback device too."""
    now = costs()
    del now["25 MB × 4"]["models_moved"]
    found = compare(now, costs())
    assert {each.figure.name for each in found} == set(now["25 MB × 4"])
    assert complaints(found) == []


def test_what_is_accepted_is_what_the_next_run_is_compared_with(tmp_path: Path) -> None:
    path, now = tmp_path / "baseline.json", costs(over_floor=99.5)
    write(path, costs() | {"7 MB × 7": {"over_floor": 1.0}})
    assert len(complained(now, read(path))) == 1
    write(path, now)
    assert read(path) == now, "a row that is not measured any more is gone"
    assert complained(now, read(path)) == []


def test_what_is_accepted_is_written_for_people_to_compare(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    write(path, {"25 MB × 4": {"over_tcp": 2.5, "over_floor": 1.0}})
    assert path.read_text(encoding="utf-8") == (
        '{\n  "25 MB × 4": {\n    "over_floor": 1.0,\n    "over_tcp": 2.5\n  }\n}\n'
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the whole"),
        ("[1]", "the whole"),
        ('{"25 MB × 4": 3}', "25 MB × 4"),
        ('{"25 MB × 4": {"over_tcp": "fast"}}', "25 MB × 4 over_tcp"),
        ('{"25 MB × 4": {"over_tcp": 0}}', "25 MB × 4 over_tcp"),
        ('{"25 MB × 4": {"over_tcp": Infinity}}', "25 MB × 4 over_tcp"),
        ('{"25 MB × 4": {"over_tcp": NaN}}', "25 MB × 4 over_tcp"),
    ],
)
def test_a_file_that_holds_no_rows_of_numbers_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidUsage, match=f"{words}: .*--accept"):
        read(path)


def test_without_a_file_it_is_said_how_to_write_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidUsage, match="does not exist: --accept"):
        read(tmp_path / "baseline.json")


def test_a_regression_is_the_exit_code_and_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert conclude(compare(costs(over_floor=99), costs()), JsonOutput()) == 1
    *rows, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert [each["figure"] for each in rows if each["verdict"] == "regressed"] == ["over_floor"]
    assert len(rows) == len(FIGURES)
    assert summary["summary"] is True
    (complaint,) = summary["complaints"]
    assert "99, where 10 is accepted" in complaint


def test_no_regression_is_exit_code_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert conclude(compare(costs(), costs()), JsonOutput()) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["complaints"] == []


def test_the_baseline_of_the_repository_names_exactly_what_is_measured() -> None:
    names = {figure.name for figure in FIGURES}
    assert {name: set(figures) for name, figures in read(BASELINE).items()} == {
        plan.name: names for plan in PLANS
    }


@pytest.mark.parametrize("wrong", ["--rounds=3", "again"])
def test_an_argument_it_does_not_know_is_refused_before_anything_is_measured(wrong: str) -> None:
    command = [sys.executable, "-m", "benchmarks.quick", wrong]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"unrecognized arguments: {wrong}" in done.stderr
