# SPDX-License-Identifier: Apache-2.0
"""A comparison as a page of Markdown: the tables, and the notes below them."""

from fed_sophia.experiments.notes import notes, percent
from fed_sophia.experiments.table import Comparison, Spread, ToTarget
from fed_sophia.experiments.trials import point_text

NOTHING = "–"


def markdown(comparison: Comparison) -> str:
    """The whole page: title, tables, notes."""
    parts = [
        f"# {comparison.scenario.title}",
        accuracy_table(comparison),
        "What it cost:",
        cost_table(comparison),
        "\n".join(f"- {sentence}" for sentence in notes(comparison)),
    ]
    return "\n\n".join(parts) + "\n"


def accuracy_table(comparison: Comparison) -> str:
    """Final accuracy, rounds to each target, and the chosen hyper-parameters."""
    targets = [f"rounds to {percent(target)}" for target in comparison.scenario.targets]
    heading = ["algorithm", "final test accuracy %", *targets, "seeds", "chosen", "points tried"]
    body = [
        [
            row.label,
            fixed_text(in_percent(row.accuracy), decimals=2),
            *(_reached_text(each, each.rounds) for each in row.targets),
            str(len(row.seeds)),
            point_text(row.varied),
            str(row.points) if row.points_tried == row.points else f"{row.points_tried} of {row.points}",
        ]
        for row in comparison.rows
    ]
    return markdown_table(heading, body)


def cost_table(comparison: Comparison) -> str:
    """Bytes and seconds to each target; time, speed and energy of a whole trial."""
    heading = ["algorithm"]
    for target in comparison.scenario.targets:
        heading += [f"{what} to {percent(target)}" for what in ("MB up", "MB down", "seconds")]
    heading += ["seconds in all", "examples/s"]
    with_joules = any(row.joules is not None for row in comparison.rows)
    body = []
    for row in comparison.rows:
        cells = [row.label]
        for each in row.targets:
            cells += [
                _reached_text(each, each.megabytes_up),
                _reached_text(each, each.megabytes_down),
                _reached_text(each, each.seconds),
            ]
        cells += [_spread_text(row.seconds), _spread_text(row.examples_per_second)]
        body.append([*cells, _spread_text(row.joules)] if with_joules else cells)
    return markdown_table([*heading, "joules"] if with_joules else heading, body)


def _reached_text(target: ToTarget, value: Spread | None) -> str:
    if value is None:
        return NOTHING
    share = "" if target.reached == target.of else f" ({target.reached}/{target.of})"
    return _spread_text(value) + share


def _spread_text(value: Spread | None) -> str:
    """Mean ± deviation to two digits of the mean, or to ones."""
    if value is None:
        return NOTHING
    return fixed_text(value, 0 if value.mean >= 10 else 1 if value.mean >= 1 else 2)


def fixed_text(value: Spread, decimals: int) -> str:
    """Mean ± deviation."""
    mean = f"{value.mean:.{decimals}f}"
    return mean if value.deviation is None else f"{mean} ± {value.deviation:.{decimals}f}"


def in_percent(value: Spread) -> Spread:
    """The same of fractions, in per cent."""
    deviation = None if value.deviation is None else 100 * value.deviation
    return Spread(100 * value.mean, deviation, value.count)


def markdown_table(heading: list[str], body: list[list[str]]) -> str:
    """A Markdown table whose columns are as wide in the text as on the page."""
    cells = [[text.replace("|", "\\|") for text in line] for line in (heading, *body)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(heading))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
