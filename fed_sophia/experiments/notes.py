# SPDX-License-Identifier: Apache-2.0
"""What a reader must know to judge the tables of a comparison, in whole sentences."""

from collections.abc import Iterable, Sequence

from fed_sophia.experiments.engine import IN_PROCESS, WIRE
from fed_sophia.experiments.scenario import Contender, Scenario
from fed_sophia.experiments.table import Comparison, Row, Standing, standing
from fed_sophia.experiments.trials import point_text
from protocol.algorithms import algorithm_named

_TRAINED = {
    IN_PROCESS: "in one process, all workers' models stacked",
    WIRE: "by a server and workers over HTTP",
}


def notes(comparison: Comparison) -> list[str]:
    """What a reader must know to judge the tables, in whole sentences."""
    scenario, rows = comparison.scenario, comparison.rows
    sentences = [
        significance(rows),
        setting(scenario),
        *(
            own
            for each in scenario.algorithms
            if each.label in comparison.chosen and (own := _own(scenario, each)) is not None
        ),
        _reading(scenario),
        _selection(comparison),
    ]
    if edge := [f"{row.label} ({point_text(row.on_edge)})" for row in rows if row.on_edge]:
        sentences.append(f"On the edge of its grid: {_list(edge)}; the best may lie beyond.")
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
    return [*sentences, *environments(comparison)]


def significance(rows: Sequence[Row]) -> str:
    """Which algorithms cannot be told from the best, which can, and of which nothing can be said."""
    if len(rows) < 2:
        return "There is nothing to compare yet."
    if all(row.accuracy.count < 2 for row in rows):
        return "With one seed no difference is known to be more than chance."
    found = standing(rows)
    said = []
    if found.best is None:
        said.append("No difference can be judged yet.")
    elif found.near:
        said.append(
            f"{_with_n(found.near)} {_is(found.near)} within one pooled standard deviation of "
            f"{_with_n([found.best])}, {_rank(found)}: not a significant difference at so few seeds."
        )
    if found.best is not None and found.far:
        than = "it" if found.near else f"{_with_n([found.best])}, {_rank(found)}"
        said.append(
            f"{_with_n(found.far)} {_is(found.far)} more than one pooled standard deviation below {than}."
        )
    if found.not_comparable:
        said.append(
            f"Not compared, for that takes two seeds or more and no failure: {_with_n(found.not_comparable)}."
        )
    return " ".join(said)


def _with_n(rows: Sequence[Row]) -> str:
    """`fedavg (n = 3)`, and how many of the n failed."""
    return _list(
        f"{row.label} (n = {row.accuracy.count}{f', {len(row.failures)} failed' if row.failures else ''})"
        for row in rows
    )


def _is(rows: Sequence[Row]) -> str:
    return "is" if len(rows) == 1 else "are"


def _rank(found: Standing) -> str:
    return "the best of those that can be compared" if found.not_comparable else "the best"


def setting(scenario: Scenario) -> str:
    """What all algorithms of a scenario have in common."""
    share = (
        "all in every round"
        if scenario.participation == 1
        else f"{percent(scenario.participation)} of them in a round"
    )
    return (
        f"Task {scenario.task}, partition {scenario.partition}, {scenario.workers} workers, {share}; "
        f"{scenario.local_steps} local steps of {scenario.batch_size} examples, {scenario.rounds} rounds, "
        "unless said otherwise below."
    )


def _own(scenario: Scenario, contender: Contender) -> str | None:
    """In what an algorithm differs from the setting, and what it has at every point; None if in nothing."""
    steps, batch, rounds = contender.local_steps, contender.batch_size, contender.rounds
    words = []
    if steps not in (None, scenario.local_steps):
        words.append(f"{steps} local steps")
    if batch not in (None, scenario.batch_size):
        words.append(f"batches of {batch}")
    if rounds not in (None, scenario.rounds):
        words.append(f"{rounds} rounds")
    words += [f"the combiner {name} for {bundle}" for bundle, name in contender.combiners.items()]
    words += [f"{bundle} as {name}" for bundle, name in contender.encodings.items()]
    if contender.max_delta_norm is not None:
        words.append(f"deltas of length {contender.max_delta_norm:g} at most")
    point = contender.all_points[0]
    varied = contender.varied(point)
    if held := {name: value for name, value in point.items() if name not in varied}:
        words.append(f"{point_text(held)} at every point")
    return f"{contender.label} has its own: {', '.join(words)}." if words else None


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


def environments(comparison: Comparison) -> list[str]:
    """By what, and where, the trials shown were trained."""
    seen: dict[str, int] = {}
    for choice in comparison.chosen.values():
        for result in choice.results.values():
            words = ", ".join(f"{name} {value}" for name, value in sorted(result.environment.items()))
            seen[words] = seen.get(words, 0) + 1
    how = _TRAINED.get(comparison.engine, comparison.engine)
    if len(seen) == 1:
        return [f"Trained {how}: {next(iter(seen))}."]
    return [f"{count} of the trials shown were trained {how}: {words}." for words, count in seen.items()]


def percent(fraction: float) -> str:
    return f"{100 * fraction:g} %"


def _sentence(text: str | None) -> str:
    return f"{(text or '').rstrip('.')}."


def _list(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
