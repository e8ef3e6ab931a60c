# SPDX-License-Identifier: Apache-2.0
"""`fed-sophia experiment …`: run a comparison of algorithms, and show what it found."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fed_sophia.experiments.choice import choices, missing_to_choose, results_of
from fed_sophia.experiments.engine import IN_PROCESS, WIRE, Engine
from fed_sophia.experiments.pages import compared, write_pages
from fed_sophia.experiments.results import Result
from fed_sophia.experiments.results_file import Stored, load_results
from fed_sophia.experiments.scenario import SCENARIOS, Scenario, load_scenario, scenario_files
from fed_sophia.experiments.sweep import Sweep, untried
from fed_sophia.experiments.sweep_view import sweep_shown
from fed_sophia.experiments.trials import Trial, part_of, trials_of
from fed_sophia.extras import needing
from fed_sophia.interruptible import Interrupted
from fed_sophia.options import DataDir, JsonLines
from fed_sophia.output import Fields, Output, output_for
from fed_sophia.worker_options import Device, Threads
from protocol.errors import InvalidUsage

RUN_EXAMPLES = """\b
Examples:
  fed-sophia experiment run digits --in-process
  fed-sophia experiment run mlp-shards2 --in-process --seeds 0 --device cuda
  fed-sophia experiment run mlp-shards2 --points chosen
  fed-sophia experiment run my-scenario.toml --only fedavg --json
  fed-sophia experiment run attacks-delta --in-process --threads 1 --part 1/8
"""
REPORT_EXAMPLES = """\b
Examples:
  fed-sophia experiment report mlp-shards2
  fed-sophia experiment report mlp-shards2 cnn-dir01 --out tables
"""
LIST_EXAMPLES = """\b
Examples:
  fed-sophia experiment list
  fed-sophia experiment list --json
"""
RESULTS = Path("benchmarks/experiments/results")
_RESULTS_ELSEWHERE = Path("experiment-results")


class Points(StrEnum):
    """Which points of the hyper-parameters are tried."""

    ALL = "all"
    CHOSEN = "chosen"


def _scenario_names(begun: str) -> list[str]:
    return [name for name in sorted(scenario_files()) if name.startswith(begun)]


Scenarios = Annotated[
    list[str],
    typer.Argument(
        metavar="SCENARIO...",
        help="Names of scenarios, as `experiment list` shows them, or paths of .toml files.",
        autocompletion=_scenario_names,
        show_default=False,
    ),
]
Results = Annotated[
    Path | None,
    typer.Option(
        "--results",
        help="Folder of the results.",
        show_default=f"{RESULTS} if it is there, else {_RESULTS_ELSEWHERE}",
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="LABEL", help="Only the algorithm with this label. Repeatable."),
]


def run(
    scenarios: Scenarios,
    in_process: Annotated[
        bool,
        typer.Option(
            "--in-process", help="Train with all workers' models stacked, not with a server and workers."
        ),
    ] = False,
    results: Results = None,
    seeds: Annotated[
        str | None, typer.Option(help="Only these of the scenario's seeds, as in 0,1.", show_default="all")
    ] = None,
    only: Only = None,
    points: Annotated[
        Points, typer.Option(help="all, or only the one that validation has chosen from what is done.")
    ] = Points.ALL,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="K/N",
            help="Only the K-th of N parts of the trials, as in 2/8: for N processes side by side.",
            show_default="all",
        ),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    data_dir: DataDir = None,
    json_lines: JsonLines = False,
) -> None:
    """Train what a scenario asks for and has no result yet, then show the table.

    Every result is kept the moment its trial has ended; after Ctrl-C the same command goes on from there.
    """
    output = output_for(json_lines)
    loaded = _loaded(scenarios, only)
    folder, engine = _folder(results), IN_PROCESS if in_process else WIRE
    stored = _stored(folder, output)
    done = stored.by_engine(engine)
    wanted = [
        trial
        for scenario in loaded
        for trial in trials_of(
            scenario,
            seeds=_seeds(scenario, seeds),
            labels=only,
            points=_chosen(scenario, only, done) if points is Points.CHOSEN else None,
        )
    ]
    wanted = untried(wanted, ())
    if part is not None:
        wanted = part_of(wanted, part)
    left = untried(wanted, done)
    skipped = len(wanted) - len(left)
    text = f"{len(left)} trials to train; {skipped} have their results in {folder} already"
    fields: Fields = {"trials": len(left), "skipped": skipped, "results": str(folder)}
    output.event("begin", text, fields)
    if left:
        finals = {scenario.name: scenario.final_evaluations for scenario in loaded}
        _train(left, finals, _engine(in_process, device, threads, data_dir), folder, output)
    if part is None:
        _show(loaded, load_results(folder), folder, [engine], None, output)
    else:
        text = f"Part {part} is done. `experiment report` shows what all parts have found."
        output.summary(text, {"part": part, "comparisons": []})


def report(
    scenarios: Scenarios,
    results: Results = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the tables and plots.", show_default="that of the results"),
    ] = None,
    only: Only = None,
    json_lines: JsonLines = False,
) -> None:
    """Make the tables and plots of what has been trained so far."""
    output = output_for(json_lines)
    loaded = _loaded(scenarios, only)
    folder = _folder(results)
    stored = _stored(folder, output)
    _show(loaded, stored, out or folder, stored.engines, only, output)


def list_scenarios(results: Results = None, json_lines: JsonLines = False) -> None:
    """List the scenarios that can be named, and how much of each has been trained."""
    output = output_for(json_lines)
    stored = _stored(_folder(results), output)
    names = sorted(scenario_files())
    width = max(map(len, names), default=0)
    for name in names:
        scenario = load_scenario(name)
        trials = untried(trials_of(scenario), ())
        done = {
            engine: len(trials) - len(untried(trials, stored.by_engine(engine))) for engine in stored.engines
        }
        said = "".join(f", {count} {engine}" for engine, count in done.items() if count)
        fields: Fields = {"name": name, "title": scenario.title, "trials": len(trials), "done": done}
        text = f"{name:{width}}  {scenario.title} ({len(trials)} trials{said})"
        output.event("scenario", text, fields)
    output.summary("" if names else f"There is no scenario in {SCENARIOS}", {"scenarios": len(names)})


def _train(
    trials: Sequence[Trial], finals: dict[str, int], engine: Engine, folder: Path, output: Output
) -> None:
    try:
        with sweep_shown(output, finals) as view:
            Sweep(trials, engine, folder, view).run()
    except (KeyboardInterrupt, Interrupted):
        text = f"What has ended is kept in {folder}. The same command goes on from there."
        output.event("interrupted", text, {"results": str(folder)})
        raise


def _engine(in_process: bool, device: str, threads: int | None, data_dir: Path | None) -> Engine:
    with needing("worker"):
        if in_process:
            from fed_sophia.experiments import in_process as stacked

            return stacked.make_engine(device, threads, data_dir)
        from fed_sophia.experiments import over_wire

        return over_wire.make_engine(device, threads, data_dir)


def _show(
    loaded: Sequence[Scenario],
    stored: Stored,
    folder: Path,
    engines: Sequence[str],
    only: Sequence[str] | None,
    output: Output,
) -> None:
    shown = [each for scenario in loaded for each in compared(scenario, stored, engines)]
    if not shown:
        output.summary("There are no results yet.", {"comparisons": []})
        return
    folder.mkdir(parents=True, exist_ok=True)
    comparisons, written = list[Fields](), list[str]()
    for comparison in shown:
        pages = write_pages(comparison, folder, only)
        files = [str(path) for path in pages.files]
        output.event("table", pages.text, {"scenario": comparison.scenario.name, "files": files})
        if pages.without_plots:
            text = f"There are no plots: {pages.without_plots}"
            output.event("no-plots", text, {"reason": pages.without_plots})
        comparisons.append(comparison.fields() | {"files": files})
        written += files
    output.summary(f"Written: {', '.join(written)}", {"comparisons": comparisons})


def _stored(folder: Path, output: Output) -> Stored:
    stored = load_results(folder)
    for path in stored.torn:
        text = f"{path}: the last line has no end, as after a kill; it does not count and will be replaced"
        output.event("torn-line", text, {"file": str(path)})
    return stored


def _folder(results: Path | None) -> Path:
    if results is not None:
        return results
    return RESULTS if RESULTS.is_dir() else _RESULTS_ELSEWHERE


def _chosen(scenario: Scenario, only: Sequence[str] | None, done: Mapping[str, Result]) -> dict[str, int]:
    """{label: its chosen point} of the algorithms wanted; the only point where there is but one.

    Raises:
        InvalidUsage: an algorithm has several points, and no seed with which all of them were tried.
    """
    chosen = choices(scenario, done)
    points = {}
    for each in scenario.algorithms:
        if only is not None and each.label not in only:
            continue
        if missing := missing_to_choose(each, results_of(scenario, each, done)):
            raise InvalidUsage(
                f"--points chosen: {scenario.name}, {each.label}: {missing}; "
                "run it with --points all for at least one seed first"
            )
        points[each.label] = chosen[each.label].point if each.label in chosen else 0
    return points


def _seeds(scenario: Scenario, text: str | None) -> tuple[int, ...]:
    if text is None:
        return scenario.seeds
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InvalidUsage(f"--seeds {text!r}: expected whole numbers, as in 0,1") from None
    for seed in seeds:
        if seed not in scenario.seeds:
            raise InvalidUsage(f"--seeds {seed}: {scenario.name} has {', '.join(map(str, scenario.seeds))}")
    return seeds


def _loaded(names: Sequence[str], only: Sequence[str] | None) -> list[Scenario]:
    """The scenarios of a command.

    Raises:
        InvalidUsage: one cannot be read, two have one name, or none has an algorithm with a label wanted.
    """
    loaded = [load_scenario(each) for each in names]
    for place, scenario in enumerate(loaded):
        if any(scenario.name == earlier.name for earlier in loaded[:place]):
            raise InvalidUsage(
                f"scenario {names[place]}: two are called {scenario.name!r}, and results and pages go by the "
                "name; give each its own command and --results"
            )
    for label in only or ():
        if all(label != each.label for scenario in loaded for each in scenario.algorithms):
            loaded[0].contender(label)
    return loaded
