# SPDX-License-Identifier: Apache-2.0
"""The plots: what the lines are of, and that equal results give equal files."""

import subprocess
import sys
from pathlib import Path

import pytest

from fed_sophia.experiments.plots import Curve, curves, cut_text, limits, save_plots
from fed_sophia.experiments.table import Comparison
from fed_sophia.experiments.trials import Trial
from tests.fed_sophia.experiments.formula_engine import SMALL, FormulaEngine
from tests.fed_sophia.experiments.test_comparison import compared


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    return compared(tmp_path, FormulaEngine())


def test_a_line_is_the_mean_over_the_seeds_between_the_lowest_and_the_highest(comparison: Comparison) -> None:
    """fedavg at 0.2: 40 and 41 % after 2 rounds, 60 and 61 % after 4; 5 MB and 1 s a round."""
    curve = curves(comparison)[0]
    assert curve.label == "fedavg"
    assert curve.mean == pytest.approx((40.5, 60.5))
    assert curve.lowest == pytest.approx((40, 60))
    assert curve.highest == pytest.approx((41, 61))
    assert curve.along == ((2, 4), (10, 20), (2, 4))


def test_of_many_algorithms_the_first_six_of_the_scenario_are_drawn(tmp_path: Path) -> None:
    """The best six would leave out whom the others are compared with."""
    more = "".join(
        f'[[algorithms]]\nname = "fedavg"\nlabel = "{label}"\ngrid = {{ learning_rate = [0.1, 0.2] }}\n'
        for label in "abcdef"
    )
    drawn = curves(compared(tmp_path, FormulaEngine(), SMALL + more))
    assert [curve.label for curve in drawn] == ["fedavg", "fedavgm", "a", "b", "c", "d"]


def test_only_the_lines_wanted_are_drawn(comparison: Comparison) -> None:
    assert [curve.label for curve in curves(comparison, ["fedavgm"])] == ["fedavgm"]


def test_a_trial_that_failed_has_no_line(tmp_path: Path) -> None:
    failed = compared(tmp_path, FormulaEngine(failure=lambda trial: "NaN"))
    assert curves(failed) == []


def test_a_line_over_some_of_the_seeds_says_so(tmp_path: Path) -> None:
    def failure(trial: Trial) -> str | None:
        return "NaN" if trial.label == "fedavg" and trial.seed == 0 else None

    some, whole = curves(compared(tmp_path, FormulaEngine(failure=failure)))
    assert (some.legend, whole.legend) == ("fedavg (1/2 seeds)", "fedavgm")
    assert some.lowest == some.highest


def a_curve(*accuracies: float) -> Curve:
    return Curve("a", (), accuracies, accuracies, accuracies, 1, 1)


def test_the_axis_begins_where_the_curves_part_and_says_what_it_cuts() -> None:
    """The second of two begins at 40: the axis at 35; the first begins at 10."""
    drawn = [a_curve(10, 60, 80), a_curve(40, 70, 85)]
    assert limits(drawn) == (35, 86)
    assert cut_text(drawn, 35) == " (what is below 35 is cut off)"
    assert cut_text(drawn[1:], 35) == ""


def test_no_curve_is_cut_off_whole() -> None:
    drawn = [a_curve(10, 10, 12), a_curve(70, 70, 85), a_curve(71, 72, 85)]
    assert limits(drawn) == (7, 86)


def test_equal_results_give_equal_drawings(comparison: Comparison, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    first, second = (save_plots(comparison, tmp_path / name) for name in ("first", "second"))
    assert [path.name for path in first] == ["first.png", "first.svg"]
    assert first[0].read_bytes().startswith(b"\x89PNG")
    assert first[1].read_bytes() == second[1].read_bytes()


def test_without_the_library_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from pathlib import Path\n"
        "from fed_sophia.experiments.plots import save_plots\n"
        "save_plots(None, Path('x'))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert "pip install 'fed-sophia[experiments]'" in ended.stderr
