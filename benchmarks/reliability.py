# SPDX-License-Identifier: Apache-2.0
"""Rounds to an accuracy with dead, slow and lying workers, against those of a clean run.

    python -m benchmarks.reliability                     the table of docs/explanation/reliability.md
    python -m benchmarks.reliability --garbage inside    liars that send only what the bound lets pass
    python -m benchmarks.reliability --garbage refusable liars that send only what is refused by name

For every setting and seed two federations of 32 real workers and a real server train the same model: once
clean, once with 3 workers that die in each round, 3 slow ones and 3 that send garbage.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.disturbed.disturbances import REPERTOIRES, Disturbances, disturbances, undisturbed
from benchmarks.disturbed.figures import Figures, figures_of, table
from benchmarks.disturbed.run import Crew, federation_run
from benchmarks.disturbed.settings import SETTINGS, TARGETS, TASK, WORKERS, request_for
from benchmarks.ending import ending
from fed_sophia.interruptible import run_interruptibly
from fed_sophia.output import Output, output_for
from worker.options import SwarmOptions
from worker.trainers import build_trainers

PARTITION = "shards:2"
PACE_S = 1.0
ROUNDS = 60
SEEDS = (0, 1, 2)


async def measure(
    names: Sequence[str], seeds: Sequence[int], most_rounds: int, garbage: str, output: Output
) -> list[Figures]:
    """Figures of every setting and seed, the clean run before the disturbed one."""
    found = []
    for seed in seeds:
        crew = await asyncio.to_thread(crew_for, seed, PACE_S)
        cases = {"clean": undisturbed(WORKERS), garbage: disturbances(seed, WORKERS, REPERTOIRES[garbage])}
        for name in names:
            for case, disturbed in cases.items():
                figures = await _one(name, seed, case, most_rounds, crew, disturbed, output)
                output.event("run-measured", figures.sentence(), figures.fields())
                found.append(figures)
    return found


async def _one(
    name: str, seed: int, case: str, most_rounds: int, crew: Crew, disturbed: Disturbances, output: Output
) -> Figures:
    title = f"{name}, {case}, seed {seed}"
    output.event("run-begun", title, {"setting": name, "case": case, "seed": seed})
    request = request_for(SETTINGS[name], seed, most_rounds)
    with tempfile.TemporaryDirectory(prefix="fed-sophia-reliability-", ignore_cleanup_errors=True) as folder:
        outcome = await federation_run(title, request, crew, disturbed, Path(folder), output)
    return figures_of(name, case, seed, outcome)


def crew_for(seed: int, pace_s: float) -> Crew:
    """32 workers and an evaluator, with the data that this seed gives them."""
    swarm = SwarmOptions(
        server_url="",
        join_token=None,
        state_dir=Path(),
        task=TASK,
        num_workers=WORKERS,
        partition=PARTITION,
        partition_seed=seed,
        device="cpu",
        threads=1,
    )
    task_name, trainers = build_trainers(swarm.member(0), [*swarm.indices, None])
    return Crew(task_name, trainers, pace_s)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reliability", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="one pair of runs for each")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="give up after so many versions")
    parser.add_argument(
        "--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="how rounds are held"
    )
    parser.add_argument("--garbage", choices=REPERTOIRES, default="mixed", help="what the liars send")
    parser.add_argument("--json", action="store_true", help="JSON lines for machines; the last is a summary")
    return parser.parse_args()


def main() -> int:
    arguments = _arguments()
    output = output_for(arguments.json)
    measuring = measure(arguments.settings, arguments.seeds, arguments.rounds, arguments.garbage, output)
    with ending(output):
        found = run_interruptibly(measuring)
    output.summary(table(found, TARGETS), {"runs": [figures.fields() for figures in found]})
    return 1 if any(figures.violations for figures in found) else 0


if __name__ == "__main__":
    sys.exit(main())
