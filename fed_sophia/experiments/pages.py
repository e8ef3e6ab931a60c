# SPDX-License-Identifier: Apache-2.0
"""What is written of a comparison: a page of Markdown, and the plots beside it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from fed_sophia.experiments.attack_table import attack_page
from fed_sophia.experiments.plots import save_plots
from fed_sophia.experiments.report import markdown
from fed_sophia.experiments.results_file import Stored
from fed_sophia.experiments.scenario import Scenario
from fed_sophia.experiments.table import Comparison, compare
from fed_sophia.whole_file import whole_file
from protocol.errors import InvalidUsage


@dataclass(frozen=True)
class Pages:
    """What was written."""

    text: str
    files: tuple[Path, ...]
    without_plots: str | None
    """Why there are none; None where there are, or are to be none."""


def compared(scenario: Scenario, stored: Stored, engines: Sequence[str]) -> list[Comparison]:
    """One comparison for each engine that has results: their seconds are of different things."""
    found = (compare(scenario, engine, stored.by_engine(engine)) for engine in engines)
    return [each for each in found if each is not None]


def write_pages(comparison: Comparison, folder: Path, labels: Collection[str] | None) -> Pages:
    """Write SCENARIO-ENGINE.md, .png and .svg; the plots show these labels (None: the first few).

    Of attacks there are no plots.

    Raises:
        InvalidUsage: a file cannot be written.
    """
    stem = folder / f"{comparison.scenario.name}-{comparison.engine}"
    page = stem.with_name(f"{stem.name}.md")
    if comparison.scenario.attackers:
        text = attack_page(comparison)
        _write(page, text)
        return Pages(text, (page,), None)
    try:
        plots, missing = save_plots(comparison, stem, labels), None
    except InvalidUsage as error:  # the table is worth having without them
        plots, missing = [], error.detail
    text = markdown(comparison)
    picture = "" if missing else f"\n![test accuracy against rounds, bytes and seconds]({stem.name}.svg)\n"
    _write(page, text + picture)
    return Pages(text, (page, *plots), missing)


def _write(page: Path, text: str) -> None:
    with whole_file(page) as file:
        file.write(text.encode())
