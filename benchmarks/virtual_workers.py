# SPDX-License-Identifier: Apache-2.0
"""Rounds with thousands of virtual workers: whole agents in one process, trained stacked, over the real wire.

    python -m benchmarks.virtual_workers                          1,000 workers, two rounds
    python -m benchmarks.virtual_workers --stack 1                the same, trained one by one
    python -m benchmarks.virtual_workers --workers 10000          some minutes

A real server process and a real swarm; every worker enrols with its own key, waits, pulls, trains on examples
it draws for itself, keeps its update on disk and sends it. Each round waits for all of them. In this order:

    enrol    until the server knows all workers
    join     from the creation of a run to the opening of its first round
    rounds   each from its opening to its end
"""

import argparse
import asyncio
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from benchmarks.crowd.figures import Usage, table, usage_of
from benchmarks.ending import ending
from fed_sophia.federation import federation, while_alive
from fed_sophia.interruptible import run_interruptibly
from fed_sophia.new_run import RunRequest, begin
from fed_sophia.operator_client import OperatorClient
from fed_sophia.output import Output, output_for
from fed_sophia.processes import Child, Children
from protocol.errors import Internal
from protocol.messages import JoinTokenRequest, RoundSummary, RunStatus

LOOK_S = 0.5
WITHIN_S = 3600.0
MOST_LINE = 64 * 1024
PATIENT = {"FED_SOPHIA_LOST_AFTER_S": "3600", "FED_SOPHIA_ACCESS_TOKEN_S": "3600"}
"""Of the server: thousands who wait for two cores are not lost, and need not say so every 20 s."""


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    workers: int
    processes: int
    stack: int
    task: str
    algorithm: str
    rounds: int
    local_steps: int
    batch: int


@dataclass(frozen=True)
class Figures:
    """What was measured."""

    workers: int
    processes: int
    stack: int
    enrol_s: float
    join_s: float
    round_s: tuple[float, ...]
    updates_per_s: float
    """Of the median round."""
    server_cpu_s: float
    """Of one core, in all rounds."""
    swarm_cpu_s: float
    server_mb: float
    """Most memory it held, in 10^6 bytes."""
    swarm_mb: float
    """The same of the processes of the swarm together."""

    def table(self) -> str:
        return table(
            {
                "virtual workers": f"{self.workers} in {self.processes} processes, stacks of {self.stack}",
                "enrolled in": f"{self.enrol_s:.1f} s, {self.workers / self.enrol_s:.0f} a second",
                "joined a run in": f"{self.join_s:.1f} s",
                "a round": f"{median(self.round_s):.1f} s, {self.updates_per_s:.0f} updates a second",
                "rounds": ", ".join(f"{each:.1f}" for each in self.round_s) + " s",
                "processor": f"server {self.server_cpu_s:.1f} s, swarm {self.swarm_cpu_s:.1f} s of a core",
                "memory": f"server {self.server_mb:.0f} MB, swarm {self.swarm_mb:.0f} MB at most",
            }
        )


async def measure(plan: Plan, output: Output) -> Figures:
    """Start the server and the swarm, hold the rounds, end everything.

    Raises:
        FedSophiaError: the server or the swarm has failed.
    """
    with tempfile.TemporaryDirectory(prefix="fed-sophia-virtual-", ignore_cleanup_errors=True) as folder:
        async with federation(Path(folder), output) as (local, children):
            server, client = await local.start_server(PATIENT)
            async with client:
                measuring = _measure(plan, Path(folder), server, client, children, output)
                return await while_alive(children, measuring)


async def _measure(
    plan: Plan, folder: Path, server: Child, client: OperatorClient, children: Children, output: Output
) -> Figures:
    token = (await client.create_token(JoinTokenRequest(uses=plan.workers))).join_token
    began_s = time.monotonic()
    swarms = [
        await children.start(f"swarm-{number}", arguments, {"FED_SOPHIA_JOIN_TOKEN": token})
        for number, arguments in enumerate(_swarms(plan, folder, client.server_url))
    ]
    async with asyncio.timeout(WITHIN_S):
        while sum(map(_has_enrolled, swarms)) < plan.workers:
            await asyncio.sleep(LOOK_S)
    enrol_s = time.monotonic() - began_s
    text = f"{plan.workers} enrolled in {enrol_s:.1f} s"
    output.event("enrolled", text, {"enrol_s": enrol_s, "server": asdict(usage_of(server.process.pid))})
    before = _usages(server, *swarms)
    began_ms = time.time() * 1000
    run = await begin(client, _request(plan))
    rounds: tuple[RoundSummary, ...] = ()
    async with asyncio.timeout(WITHIN_S):
        while not run.status.ended:
            await asyncio.sleep(LOOK_S)
            run = await client.run(run.run_id)
            for each in (await client.rounds(run.run_id))[len(rounds) :]:
                if each.ended_ms is None:
                    break
                rounds += (each,)
                output.event("round", f"round {each.round}: {_seconds(each):.1f} s", _fields(each))
    if run.status is not RunStatus.FINISHED:
        raise Internal(f"the run ended with version {run.version} of {plan.rounds}: {run.reason}")
    after = _usages(server, *swarms)
    cpu_s = [end.cpu_s - begin.cpu_s for begin, end in zip(before, after, strict=True)]
    seconds = tuple(_seconds(each) for each in rounds)
    return Figures(
        plan.workers,
        plan.processes,
        plan.stack,
        enrol_s,
        (rounds[0].opened_ms - began_ms) / 1000,
        seconds,
        plan.workers / median(seconds),
        cpu_s[0],
        sum(cpu_s[1:]),
        server.peak_rss_mb() or 0.0,
        sum(swarm.peak_rss_mb() or 0.0 for swarm in swarms),
    )


def _has_enrolled(swarm: Child) -> int:
    with swarm.stdout.open(encoding="utf-8") as lines:
        return sum('"event": "enrolled"' in line[:MOST_LINE] for line in lines)


def _swarms(plan: Plan, folder: Path, url: str) -> list[list[str]]:
    """The arguments of each process."""
    cuts = [number * plan.workers // plan.processes for number in range(plan.processes + 1)]
    return [
        [
            *("swarm", "--server", url, "--task", plan.task, "--device", "cpu", "--threads", "1"),
            *("--workers", str(cuts[number + 1] - first), "--first-index", str(first)),
            *("--of", str(plan.workers), "--stack", str(plan.stack)),
            *("--state-dir", str(folder / f"swarm-{number}")),
        ]
        for number, first in enumerate(cuts[:-1])
    ]


def _request(plan: Plan) -> RunRequest:
    everybody = {"cohort_size": plan.workers, "quorum": plan.workers, "deadline_s": WITHIN_S}
    return RunRequest(
        task=plan.task,
        name="virtual-workers",
        rounds=plan.rounds,
        policies=dict(everybody),
        algorithm=plan.algorithm,
        local_steps=plan.local_steps,
        batch_size=plan.batch,
    )


def _usages(*children: Child) -> list[Usage]:
    return [usage_of(child.process.pid) for child in children]


def _seconds(round_: RoundSummary) -> float:
    return ((round_.ended_ms or round_.opened_ms) - round_.opened_ms) / 1000


def _fields(round_: RoundSummary) -> dict[str, object]:
    return {
        "round": round_.round,
        "round_s": _seconds(round_),
        "admitted": round_.admitted,
        "bytes_up": round_.bytes_up,
        "bytes_down": round_.bytes_down,
        "train_loss": round_.metrics.get("train_loss"),
    }


def _plan() -> tuple[Plan, bool]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.virtual_workers", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--workers", type=int, default=1000, help="in all")
    parser.add_argument("--processes", type=int, default=1, help="that hold them")
    parser.add_argument("--stack", type=int, default=64, help="workers that are trained as one")
    parser.add_argument("--task", default="digits", help="what is trained")
    parser.add_argument("--algorithm", default="fed-sophia-shared", help="by what")
    parser.add_argument("--rounds", type=int, default=2, help="of all workers")
    parser.add_argument("--local-steps", type=int, default=10, help="of each worker")
    parser.add_argument("--batch", type=int, default=32, help="examples of a local step")
    parser.add_argument("--json", action="store_true", help="JSON lines for machines; the last is a summary")
    given = vars(parser.parse_args())
    json_lines = bool(given.pop("json"))
    return Plan(**given), json_lines


def main() -> int:
    plan, json_lines = _plan()
    output = output_for(json_lines)
    with ending(output):
        figures = run_interruptibly(measure(plan, output))
    output.summary(figures.table(), asdict(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
