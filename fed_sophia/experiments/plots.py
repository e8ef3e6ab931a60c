# SPDX-License-Identifier: Apache-2.0
"""A comparison as a picture: test accuracy against rounds, against bytes and against seconds.

The lines differ in dashes and markers, not in colour alone, so that they can be told apart in grey.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from fed_sophia.experiments.choice import BySeed
from fed_sophia.experiments.results import Evaluations
from fed_sophia.experiments.table import BYTES_OF_A_MB, Comparison
from fed_sophia.extras import needing
from fed_sophia.whole_file import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
_AT_MOST = 6
# dark and light take turns, and no two lines share both dashes and marker
_COLOURS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#7f7f7f", "#e69f00", "#56b4e9")
_DASHES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_PANELS = ("rounds", "MB, up and down together", "seconds of training and aggregation")


@dataclass(frozen=True)
class Curve:
    """One algorithm: the mean over its seeds, and the lowest and the highest; all of the same length."""

    label: str
    along: tuple[tuple[float, ...], ...]
    """For each panel, where along its axis each evaluation lies."""
    mean: tuple[float, ...]
    """Test accuracies in per cent."""
    lowest: tuple[float, ...]
    highest: tuple[float, ...]
    seeds: int
    """Over how many it is: those that failed have no part."""
    of: int

    @property
    def legend(self) -> str:
        """The label, and how many of the seeds are shown where it is not all."""
        return self.label if self.seeds == self.of else f"{self.label} ({self.seeds}/{self.of} seeds)"


def curves(comparison: Comparison, labels: Collection[str] | None = None) -> list[Curve]:
    """The curves of the algorithms wanted, in the order of the scenario; failed trials are left out.

    None means the scenario's first six: more cannot be told apart.
    """
    order = [each.label for each in comparison.scenario.algorithms]
    wanted = order[:_AT_MOST] if labels is None else [label for label in order if label in labels]
    found = (
        _curve(label, comparison.chosen[label].results) for label in wanted if label in comparison.chosen
    )
    return [curve for curve in found if curve is not None]


def save_plots(comparison: Comparison, stem: Path, labels: Collection[str] | None = None) -> list[Path]:
    """Write `stem`.png and `stem`.svg; equal results give equal SVG bytes.

    Raises:
        InvalidUsage: matplotlib is not installed, or a file cannot be written.
    """
    with needing("experiments"):
        import matplotlib as mpl
        from matplotlib.figure import Figure

    files = []
    settings = mpl.rc_context(
        {
            "svg.hashsalt": "fed-sophia",
            "font.size": 9.0,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    with settings:
        figure = Figure(figsize=(11.0, 4.6), layout="constrained")
        _draw(figure, comparison.scenario.title, curves(comparison, labels))
        for form in FORMATS:
            path = stem.with_name(f"{stem.name}.{form}")
            metadata = {"Date": None} if form == "svg" else {"Software": None}
            with whole_file(path) as file:
                figure.savefig(file, format=form, dpi=150, metadata=metadata)
            files.append(path)
    return files


def _curve(label: str, results: BySeed) -> Curve | None:
    """Up to where every seed was evaluated."""
    evaluations = [result.evaluations for result in results.values() if result.failure is None]
    length = min((len(each.round) for each in evaluations), default=0)
    if not length:
        return None
    accuracies = [
        [100 * (each.test_accuracy[place] or 0.0) for each in evaluations] for place in range(length)
    ]
    along = zip(*(_along(each, length) for each in evaluations), strict=True)
    return Curve(
        label,
        tuple(tuple(map(fmean, zip(*panel, strict=True))) for panel in along),
        tuple(map(fmean, accuracies)),
        tuple(map(min, accuracies)),
        tuple(map(max, accuracies)),
        len(evaluations),
        len(results),
    )


def _along(evaluations: Evaluations, length: int) -> tuple[list[float], ...]:
    """For each panel, where along its axis the first `length` evaluations of one trial lie."""
    pairs = zip(evaluations.bytes_up, evaluations.bytes_down, strict=True)
    megabytes = [(up + down) / BYTES_OF_A_MB for up, down in pairs]
    return (
        [float(number) for number in evaluations.round[:length]],
        megabytes[:length],
        list(evaluations.seconds[:length]),
    )


def _draw(figure: "Figure", title: str, drawn: Sequence[Curve]) -> None:
    panels = figure.subplots(1, len(_PANELS), sharey=True)
    for number, (panel, name) in enumerate(zip(panels, _PANELS, strict=True)):
        _draw_panel(panel, number, drawn)
        panel.set_xlabel(name)
        panel.set_xlim(left=0)
        panel.grid(color="0.9")
        panel.set_axisbelow(True)
    bottom, top = limits(drawn)
    panels[0].set_ylabel(f"test accuracy, %{cut_text(drawn, bottom)}")
    panels[0].set_ylim(bottom, top)
    figure.suptitle(title)
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=min(len(labels), _AT_MOST),
            frameon=False,
            handlelength=4,
        )


def _draw_panel(panel: "Axes", number: int, drawn: Sequence[Curve]) -> None:
    styles = zip(drawn, cycle(_COLOURS), cycle(_DASHES), cycle(_MARKERS), strict=False)
    for place, (curve, colour, dashes, marker) in enumerate(styles):
        gap = max(1, len(curve.mean) // 6)
        along = curve.along[number]
        panel.fill_between(along, curve.lowest, curve.highest, color=colour, alpha=0.12, linewidth=0)
        panel.plot(
            along,
            curve.mean,
            label=curve.legend,
            color=colour,
            linestyle=dashes,
            marker=marker,
            markersize=4.5,
            markevery=(place % gap, gap),  # not all in one place, where lines lie on each other
            linewidth=1.4,
        )


def limits(drawn: Sequence[Curve]) -> tuple[float, float]:
    """From a little below what half the curves have passed after a tenth of their way, to the top.

    No lower than that, but for a curve whose best is lower: some of each is seen.
    """
    if not drawn:
        return 0.0, 100.0
    early = sorted(curve.mean[len(curve.mean) // 10] for curve in drawn)[len(drawn) // 2]
    worst = min(max(curve.mean) for curve in drawn)
    top = max(max(curve.highest) for curve in drawn)
    return max(0.0, min(early, worst) - 5), min(100.0, top + 1)


def cut_text(drawn: Sequence[Curve], bottom: float) -> str:
    """What the axis says where a curve begins or falls below it."""
    lowest = min((min(curve.lowest) for curve in drawn), default=bottom)
    return f" (what is below {bottom:.0f} is cut off)" if lowest < bottom else ""
