# SPDX-License-Identifier: Apache-2.0
"""Seconds to an accuracy: workers of unlike speed, held together by rounds or not.

    python -m benchmarks.asynchronous                 the table of docs/explanation/asynchronous-runs.md
    python -m benchmarks.asynchronous --seeds 0 --modes asynchronous --cohort-size 8

32 real workers and a real server. Each worker takes between 1 and 10 times as long as the fastest for the
same local steps, log-uniform, by the seed. A run's time is that from the opening of its first round to the
making of the first version that has the accuracy, so that no mode is charged for being measured.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median

import numpy as np

from benchmarks.disturbed.disturbances import Disturbances
from benchmarks.disturbed.run import Crew, Outcome, federation_run
from benchmarks.disturbed.settings import TASK, WORKERS
from benchmarks.ending import ending
from benchmarks.reliability import crew_for
from fed_sophia.interruptible import run_interruptibly
from fed_sophia.new_run import RunRequest
from fed_sophia.options import hyperparameters
from fed_sophia.output import Fields, Output, output_for
from protocol.messages import RoundStatus, RoundSummary

TARGET = 0.80
PACE_S = 2.0
"""Of the fastest worker: what the machine itself takes for 32 of them is small beside it."""
SLOWEST = 10.0
MOST_VERSIONS = {"quorum-1.0": 60, "quorum-0.8": 80, "asynchronous": 400}
COHORT_SIZE = 8
_TARGET_METRIC = {"name": "test_accuracy", "at_least": TARGET, "wait_s": 0.001}


@dataclass(frozen=True)
class Figures:
    """One run in numbers."""

    mode: str
    seed: int
    seconds: float | None
    """To the target; None if no version had it."""
    versions: int
    """Made until then."""
    updates: int
    """Counted until then."""
    refused: Mapping[str, int]
    round_s: float
    """Median."""
    staleness: Sequence[int]
    """How many of the counted updates were 0, 1, 2 … versions stale."""
    test_accuracy: float
    """The highest."""
    violations: Sequence[str]

    def fields(self) -> Fields:
        return asdict(self)

    def sentence(self) -> str:
        reached = "never" if self.seconds is None else f"after {self.seconds:.0f} s"
        return (
            f"{self.mode}, seed {self.seed}: {TARGET:.0%} {reached}, {self.versions} versions of "
            f"{self.updates} updates, {self.round_s:.1f} s each; highest {self.test_accuracy:.1%}"
        )


def policies_of(mode: str, cohort_size: int, exponent: float) -> dict[str, object]:
    """How rounds are held."""
    common: dict[str, object] = {"min_workers": WORKERS, "deadline_s": 600.0, "target_metric": _TARGET_METRIC}
    if mode == "quorum-1.0":
        return common | {"cohort_size": WORKERS, "quorum": WORKERS}
    if mode == "quorum-0.8":
        kept = round(0.8 * WORKERS)
        return common | {"cohort_size": kept, "quorum": kept, "over_selection": WORKERS / kept}
    asynchronous = {"staleness_exponent": exponent, "concurrency": WORKERS, "max_staleness": 50}
    return common | {"cohort_size": cohort_size, "quorum": cohort_size // 2, "asynchronous": asynchronous}


def speeds(seed: int) -> Disturbances:
    """Everybody honest and immortal, and each with a pace of its own."""
    factors = np.exp(np.random.default_rng([seed, 17]).uniform(0, np.log(SLOWEST), WORKERS))
    slow = {worker: float(factor) for worker, factor in enumerate(factors)}
    return Disturbances(seed, slow, frozenset(), tuple(range(WORKERS)), 0, ())


async def measure(arguments: argparse.Namespace, output: Output) -> list[Figures]:
    """Every mode with every seed."""
    found = []
    for seed in arguments.seeds:
        crew = await asyncio.to_thread(crew_for, seed, PACE_S)
        for mode in arguments.modes:
            request = RunRequest(
                task=TASK,
                name=mode,
                rounds=MOST_VERSIONS[mode],
                policies=policies_of(mode, arguments.cohort_size, arguments.staleness_exponent),
                algorithm=arguments.algorithm,
                hyperparameters=hyperparameters(arguments.set, arguments.algorithm),
                seed=seed,
            )
            figures = figures_of(mode, seed, await _one(f"{mode}, seed {seed}", request, crew, seed, output))
            output.event("run-measured", figures.sentence(), figures.fields())
            found.append(figures)
    return found


async def _one(title: str, request: RunRequest, crew: Crew, seed: int, output: Output) -> Outcome:
    output.event("run-begun", title, {"mode": request.name, "seed": seed})
    with tempfile.TemporaryDirectory(prefix="fed-sophia-asynchronous-", ignore_cleanup_errors=True) as folder:
        return await federation_run(title, request, crew, speeds(seed), Path(folder), output)


def figures_of(mode: str, seed: int, outcome: Outcome) -> Figures:
    """Sum a run up, to the first version at the target."""
    made = [each for each in outcome.rounds if each.status is RoundStatus.COMMITTED]
    accuracies = [each.metrics.get("test_accuracy", 0.0) for each in made]
    reached = next((i for i, accuracy in enumerate(accuracies) if accuracy >= TARGET), None)
    until = made if reached is None else made[: reached + 1]
    return Figures(
        mode=mode,
        seed=seed,
        seconds=None if reached is None else ((until[-1].ended_ms or 0) - made[0].opened_ms) / 1000,
        versions=len(until),
        updates=sum(each.admitted for each in until),
        refused=dict(outcome.record.refusals),
        round_s=round(median(((each.ended_ms or 0) - each.opened_ms) / 1000 for each in until), 2),
        staleness=_added(until),
        test_accuracy=max(accuracies),
        violations=tuple(outcome.audit.violations),
    )


def _added(rounds: Sequence[RoundSummary]) -> list[int]:
    longest = max(len(each.staleness) for each in rounds)
    return [sum(each.staleness[s] for each in rounds if s < len(each.staleness)) for s in range(longest)]


def table(found: Sequence[Figures]) -> str:
    """A Markdown table: a row for every mode, seeds in columns, and how staleness is spread."""
    seeds = sorted({each.seed for each in found})
    lines = [
        "| mode | "
        + " | ".join(f"seed {seed}: s (versions, updates)" for seed in seeds)
        + " | mean s | mean staleness | oldest |",
        "|---" * (len(seeds) + 4) + "|",
    ]
    for mode in dict.fromkeys(each.mode for each in found):
        of_mode = {each.seed: each for each in found if each.mode == mode}
        times = [each.seconds for each in of_mode.values() if each.seconds is not None]
        counts = [each.staleness for each in of_mode.values()]
        stale = [s for each in counts for s, count in enumerate(each) for _ in range(count)] or [0]
        cells = [_cell(of_mode.get(seed)) for seed in seeds]
        average = f"{mean(times):.0f}" if len(times) == len(of_mode) else "–"
        lines.append(f"| {mode} | {' | '.join(cells)} | {average} | {mean(stale):.1f} | {max(stale)} |")
    return "\n".join(lines)


def _cell(figures: Figures | None) -> str:
    if figures is None or figures.seconds is None:
        return "–"
    return f"{figures.seconds:.0f} ({figures.versions}, {figures.updates})"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.asynchronous", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run of each mode")
    parser.add_argument("--modes", nargs="+", choices=MOST_VERSIONS, default=list(MOST_VERSIONS))
    parser.add_argument(
        "--cohort-size", type=int, default=COHORT_SIZE, help="updates a version, asynchronous"
    )
    parser.add_argument("--staleness-exponent", type=float, default=0.5)
    parser.add_argument("--algorithm", default="fed-sophia-shared")
    parser.add_argument(
        "--set", metavar="NAME=VALUE", action="append", help="a hyper-parameter, for all modes"
    )
    parser.add_argument("--json", action="store_true", help="JSON lines for machines; the last is a summary")
    return parser.parse_args()


def main() -> int:
    arguments = _arguments()
    output = output_for(arguments.json)
    with ending(output):
        found = run_interruptibly(measure(arguments, output))
    output.summary(table(found), {"runs": [figures.fields() for figures in found]})
    return 1 if any(figures.violations for figures in found) else 0


if __name__ == "__main__":
    sys.exit(main())
