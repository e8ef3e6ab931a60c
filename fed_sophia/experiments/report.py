# SPDX-License-Identifier: Apache-2.0
"""A comparison in words: the tables in Markdown, and below them what a reader must know to judge them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from fed_sophia.experiments.choice import Choice, choices, results_of
from fed_sophia.experiments.engine import IN_PROCESS, WIRE
from fed_sophia.experiments.results import Result
from fed_sophia.experiments.scenario import Scenario
from fed_sophia.experiments.table import Row, Spread, ToTarget, not_told_apart, rows_of
from fed_sophia.experiments.trials import point_text
from protocol.algorithms import algorithm_named

NOTHING = "–"
_TRAINED = {
    IN_PROCESS: "in one process, all workers' models stacked",
    WIRE: "by a server and workers over HTTP",
}


@dataclass(frozen=True)
class Comparison:
    """All that the results of one engine say of a scenario."""

    scenario: Scenario
    engine: str
    chosen: Mapping[str, Choice]
    rows: Sequence[Row]
    failed_elsewhere: int
    """Trials that failed at points that were not chosen."""

    def fields(self) -> dict[str, object]:
        """The same for machines."""
        rows = [asdict(row) for row in self.rows]
        return {"scenario": self.scenario.name, "engine": self.engine, "rows": rows}


def compare(scenario: Scenario, engine: str, stored: Mapping[str, Result]) -> Comparison | None:
    """Compare a scenario's algorithms at their chosen points; None where none has a result.

    Args:
        stored: {key: result} of what the engine trained.
    """
    chosen = choices(scenario, stored)
    if not chosen:
        return None
    rows = rows_of(scenario, chosen)
    failed = sum(
        result.failure is not None
        for each in scenario.algorithms
        for by_seed in results_of(scenario, each, stored)
        for result in by_seed.values()
    )
    return Comparison(scenario, engine, chosen, rows, failed - sum(len(row.failures) for row in rows))


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
    targets = [f"rounds to {_percent(target)}" for target in comparison.scenario.targets]
    heading = ["algorithm", "final test accuracy %", *targets, "seeds", "chosen", "points tried"]
    body = [
        [
            row.label,
            _fixed_text(_in_percent(row.accuracy), decimals=2),
            *(_reached_text(each, each.rounds) for each in row.targets),
            str(len(row.seeds)),
            point_text(row.varied),
            str(row.points) if row.points_tried == row.points else f"{row.points_tried} of {row.points}",
        ]
        for row in comparison.rows
    ]
    return _table(heading, body)


def cost_table(comparison: Comparison) -> str:
    """Bytes and seconds to each target; time, speed and energy of a whole trial."""
    heading = ["algorithm"]
    for target in comparison.scenario.targets:
        heading += [f"{what} to {_percent(target)}" for what in ("MB up", "MB down", "seconds")]
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
    return _table([*heading, "joules"] if with_joules else heading, body)


def notes(comparison: Comparison) -> list[str]:
    """What a reader must know to judge the tables, in whole sentences."""
    scenario, rows = comparison.scenario, comparison.rows
    sentences = [
        significance(rows),
        _setting(scenario),
        _reading(scenario),
        _selection(comparison),
    ]
    if scenario.iterate_average:
        sentences.append(
            "Every algorithm is evaluated at the average of its versions, ā ← ā + 9/(r+8)·(θ − ā), "
            "instead of at the last version."
        )
    sentences += [
        f"{row.label} needs {len(phases)} exchanges for each of its steps; all of them are counted as rounds."
        for row in rows
        if len(phases := algorithm_named(row.algorithm).phases) > 1
    ]
    sentences += [
        f"{each.label} has fewer points: {_sentence(each.fewer_points_because)}"
        for each in scenario.algorithms
        if each.fewer_points_because is not None
    ]
    sentences += [f"{row.label}, {failure.rstrip('.')}." for row in rows for failure in row.failures]
    if comparison.failed_elsewhere:
        sentences.append(
            f"{comparison.failed_elsewhere} more of the trials failed, at points that were not chosen; "
            "a trial that failed counts as an accuracy of 0."
        )
    missing = [each.label for each in scenario.algorithms if each.label not in comparison.chosen]
    if missing:
        sentences.append(f"Not yet tried: {_list(missing)}.")
    return [*sentences, *_environments(comparison)]


def significance(rows: Sequence[Row]) -> str:
    """Which algorithms cannot be told from the best."""
    if len(rows) < 2:
        return "There is nothing to compare yet."
    best = rows[0]
    if all(row.accuracy.count < 2 for row in rows):
        return "With one seed no difference is known to be more than chance."
    if near := not_told_apart(rows):
        verb = "is" if len(near) == 1 else "are"
        return (
            f"{_list(near)} {verb} within one pooled standard deviation of {best.label}, the best: not a "
            f"significant difference at this number of seeds ({best.accuracy.count})."
        )
    return (
        f"All others are more than one pooled standard deviation below {best.label}, at "
        f"{best.accuracy.count} seeds."
    )


def _setting(scenario: Scenario) -> str:
    share = (
        "all in every round"
        if scenario.participation == 1
        else f"{_percent(scenario.participation)} of them in a round"
    )
    return (
        f"Task {scenario.task}, partition {scenario.partition}, {scenario.workers} workers, {share}; "
        f"{scenario.local_steps} local steps of {scenario.batch_size} examples, {scenario.rounds} rounds, "
        "unless an algorithm says otherwise."
    )


def _reading(scenario: Scenario) -> str:
    every = "round" if scenario.evaluate_every == 1 else f"{scenario.evaluate_every} rounds"
    return (
        f"The final accuracy is the mean of the last {scenario.final_evaluations} evaluations, one every "
        f"{every}; ± is the standard deviation over the seeds (n − 1). Where (k/n) is said, only k of n "
        "seeds reached the accuracy, and the mean is over these."
    )


def _selection(comparison: Comparison) -> str:
    by_seeds = sorted({row.chosen_by_seeds for row in comparison.rows if row.points > 1})
    if not by_seeds:
        return "Each algorithm was given one point, so nothing was chosen here."
    seeds = " or ".join(_list([str(seed) for seed in each]) if each else "what is there" for each in by_seeds)
    return (
        "Of each algorithm the point with the highest mean final accuracy on "
        f"{comparison.scenario.validation} validation examples, which are part of no worker's data, was "
        f"chosen (seeds: {seeds}); the test examples had no part in it."
    )


def _environments(comparison: Comparison) -> list[str]:
    seen: dict[str, int] = {}
    for choice in comparison.chosen.values():
        for result in choice.results.values():
            words = ", ".join(f"{name} {value}" for name, value in sorted(result.environment.items()))
            seen[words] = seen.get(words, 0) + 1
    how = _TRAINED.get(comparison.engine, comparison.engine)
    if len(seen) == 1:
        return [f"Trained {how}: {next(iter(seen))}."]
    return [f"{count} of the trials shown were trained {how}: {words}." for words, count in seen.items()]


def _reached_text(target: ToTarget, value: Spread | None) -> str:
    if value is None:
        return NOTHING
    share = "" if target.reached == target.of else f" ({target.reached}/{target.of})"
    return _spread_text(value) + share


def _spread_text(value: Spread | None) -> str:
    """Mean ± deviation to two digits of the mean, or to ones."""
    if value is None:
        return NOTHING
    return _fixed_text(value, 0 if value.mean >= 10 else 1 if value.mean >= 1 else 2)


def _fixed_text(value: Spread, decimals: int) -> str:
    mean = f"{value.mean:.{decimals}f}"
    return mean if value.deviation is None else f"{mean} ± {value.deviation:.{decimals}f}"


def _in_percent(value: Spread) -> Spread:
    deviation = None if value.deviation is None else 100 * value.deviation
    return Spread(100 * value.mean, deviation, value.count)


def _table(heading: list[str], body: list[list[str]]) -> str:
    """A Markdown table whose columns are as wide in the text as on the page."""
    cells = [[text.replace("|", "\\|") for text in line] for line in (heading, *body)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(heading))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _percent(fraction: float) -> str:
    return f"{100 * fraction:g} %"


def _sentence(text: str | None) -> str:
    return f"{(text or '').rstrip('.')}."


def _list(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
