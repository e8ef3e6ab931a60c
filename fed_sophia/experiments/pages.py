# SPDX-License-Identifier: Apache-2.0
"""What is written of a comparison: a page of Markdown, and the plots beside it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

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
    """Why there are none."""


def compared(scenario: Scenario, stored: Stored, engines: Sequence[str]) -> list[Comparison]:
    """One comparison for each engine that has results: their seconds are of different things."""
    found = (compare(scenario, engine, stored.by_engine(engine)) for engine in engines)
    return [each for each in found if each is not None]


def write_pages(comparison: Comparison, folder: Path, labels: Collection[str] | None) -> Pages:
    """Write SCENARIO-ENGINE.md, .png and .svg; the plots show these labels (None: the first few).

    Raises:
        InvalidUsage: a file cannot be written.
    """
    stem = folder / f"{comparison.scenario.name}-{comparison.engine}"
    try:
        plots, missing = save_plots(comparison, stem, labels), None
    except InvalidUsage as error:  # the table is worth having without them
        plots, missing = [], error.detail
    text = markdown(comparison)
    picture = "" if missing else f"\n![test accuracy against rounds, bytes and seconds]({stem.name}.svg)\n"
    page = stem.with_name(f"{stem.name}.md")
    with whole_file(page) as file:
        file.write((text + picture).encode())
    return Pages(text, (page, *plots), missing)
