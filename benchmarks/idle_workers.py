# SPDX-License-Identifier: Apache-2.0
"""What thousands of idle workers cost one server, and how soon those who are invited know of it.

    python -m benchmarks.idle_workers                              what docs/explanation/reliability.md says
    python -m benchmarks.idle_workers --workers 500 --rest-s 60    a quick look

A real server process with its SQLite database; the workers are enrolled with a join token, authenticate
with each request, and wait as long as the server advises. All traffic stays on loopback. In this order:

    enrol    all workers enrol, and wait
    rest     nothing happens: memory and processor time of the server
    join     a run is created: until all workers are members of it
    rounds   32 of them are invited to each round, train for a moment, and send an update
    all      a run whose first round invites everybody
"""

import argparse
import asyncio
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.crowd.children import CrowdProcesses, crowd_processes
from benchmarks.crowd.figures import Latencies, latencies, table, usage_of
from benchmarks.crowd.runs import tiny_run
from benchmarks.ending import ending
from fed_sophia.federation import federation, while_alive
from fed_sophia.interruptible import run_interruptibly
from fed_sophia.operator_client import OperatorClient
from fed_sophia.output import Output, output_for
from protocol.errors import Internal
from protocol.messages import JoinTokenRequest

COHORT = 32
ENROLLED_WITHIN_S = 600.0
SETTLED_WITHIN_S = 120.0
DONE_WITHIN_S = 300.0
LOOK_S = 0.2
MOST_BYTES_PER_WORKER = 60_000
MOST_CPU_AT_REST = 0.03
MOST_P99_S = 1.0


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    workers: int
    processes: int
    rounds: int
    rest_s: float
    training_s: float


@dataclass(frozen=True)
class Figures:
    """What was measured."""

    workers: int
    enrol_s: float
    bytes_per_worker: float
    """Growth of the server's resident memory since its start, a worker."""
    cpu_at_rest: float
    """Of one core."""
    returns_per_s: float
    join_s: float
    invited: Latencies
    all_invited: Latencies
    failures: int

    def meets_the_bars(self) -> bool:
        return (
            self.bytes_per_worker <= MOST_BYTES_PER_WORKER
            and self.cpu_at_rest <= MOST_CPU_AT_REST
            and self.invited.p99_s <= MOST_P99_S
        )

    def table(self) -> str:
        return table(
            {
                "idle workers": f"{self.workers}",
                "enrolled in": f"{self.enrol_s:.1f} s",
                "memory a worker": f"{self.bytes_per_worker / 1000:.1f} kB",
                "processor at rest": f"{100 * self.cpu_at_rest:.2f} % of a core, "
                f"{self.returns_per_s:.1f} returns/s",
                "all joined a run in": f"{self.join_s:.2f} s",
                f"{COHORT} invited": _sentence(self.invited),
                "all invited": _sentence(self.all_invited),
                "failed requests": f"{self.failures}",
            }
        )


def _sentence(found: Latencies) -> str:
    return (
        f"{found.count} assignments, from the opening of the round: median {found.median_s:.3f} s, "
        f"p99 {found.p99_s:.3f} s, most {found.most_s:.3f} s"
    )


async def measure(plan: Plan, output: Output) -> Figures:
    """Start the server and the crowd, measure, end everything.

    Raises:
        FedSophiaError: the server or the crowd has failed.
    """
    with tempfile.TemporaryDirectory(prefix="fed-sophia-crowd-", ignore_cleanup_errors=True) as folder:
        async with federation(Path(folder), output) as (local, children):
            server, client = await local.start_server()
            async with client:
                measuring = _measure(plan, server.process.pid, client, output)
                return await while_alive(children, measuring)


async def _measure(plan: Plan, pid: int, client: OperatorClient, output: Output) -> Figures:
    await client.runs()  # what the first request loads is no worker's
    fresh = usage_of(pid)
    token = (await client.create_token(JoinTokenRequest(uses=plan.workers))).join_token
    began_s = time.monotonic()
    async with crowd_processes(
        client.server_url, token, plan.workers, plan.processes, plan.training_s
    ) as crowd:
        await crowd.heard("enrolled", ENROLLED_WITHIN_S)
        enrol_s = time.monotonic() - began_s
        output.event("enrolled", f"{plan.workers} enrolled in {enrol_s:.1f} s", {"enrol_s": enrol_s})
        await crowd.tell("settle", "settled", SETTLED_WITHIN_S)
        cpu_at_rest, returns_per_s = await _rest(plan, pid, crowd, output)
        bytes_per_worker = (usage_of(pid).rss_bytes - fresh.rss_bytes) / plan.workers
        join_s, invited = await _rounds(plan, client, crowd, output)
        all_invited = await _everybody(plan, client, crowd, output)
        failures = (await crowd.totals())["failures"]
        if failures:
            output.event("failures", "", {"failures": await crowd.failures()})
    return Figures(
        plan.workers,
        enrol_s,
        bytes_per_worker,
        cpu_at_rest,
        returns_per_s,
        join_s,
        invited,
        all_invited,
        failures,
    )


async def _rest(plan: Plan, pid: int, crowd: CrowdProcesses, output: Output) -> tuple[float, float]:
    """(share of a core, requests a second) while nothing happens."""
    before, polls = usage_of(pid), (await crowd.totals())["polls"]
    began_s = time.monotonic()
    await asyncio.sleep(plan.rest_s)
    after, took_s = usage_of(pid), time.monotonic() - began_s
    returned = (await crowd.totals())["polls"] - polls
    cpu, returns_per_s = (after.cpu_s - before.cpu_s) / took_s, returned / took_s
    text = f"at rest for {took_s:.0f} s: {100 * cpu:.2f} % of a core, {returned} returns"
    output.event("rested", text, {"cpu_at_rest": cpu, "returns": returned, "rest_s": took_s})
    return cpu, returns_per_s


async def _rounds(
    plan: Plan, client: OperatorClient, crowd: CrowdProcesses, output: Output
) -> tuple[float, Latencies]:
    """(seconds until all had joined, how soon those who were invited knew)."""
    await crowd.tell("train", "training")
    began_s = time.monotonic()
    run = await tiny_run(client, min(COHORT, plan.workers), plan.rounds)
    async with asyncio.timeout(DONE_WITHIN_S):
        while run.members < plan.workers:
            await asyncio.sleep(LOOK_S)
            run = await client.run(run.run_id)
        join_s = time.monotonic() - began_s
        output.event("joined", f"all have joined in {join_s:.2f} s", {"join_s": join_s})
        while not run.status.ended:
            await asyncio.sleep(1.0)
            run = await client.run(run.run_id)
    if run.version < plan.rounds:
        raise Internal(f"the run ended with version {run.version} of {plan.rounds}: {run.reason}")
    found = latencies(run.run_id, await client.rounds(run.run_id), await crowd.assigned())
    output.event("invited", _sentence(found), asdict(found))
    return join_s, found


async def _everybody(plan: Plan, client: OperatorClient, crowd: CrowdProcesses, output: Output) -> Latencies:
    """How soon all knew who were invited to one round."""
    await crowd.tell("hold", "holding")
    before = (await crowd.totals())["assigned"]
    run = await tiny_run(client, plan.workers, rounds=1)
    async with asyncio.timeout(DONE_WITHIN_S):
        while (await crowd.totals())["assigned"] < before + plan.workers:
            await asyncio.sleep(1.0)
    found = latencies(run.run_id, await client.rounds(run.run_id), await crowd.assigned())
    output.event("all-invited", _sentence(found), asdict(found))
    await client.cancel(run.run_id)
    return found


def _plan() -> tuple[Plan, bool]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.idle_workers", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--workers", type=int, default=5000, help="how many enrol, and wait")
    parser.add_argument("--processes", type=int, default=2, help="that hold the workers")
    parser.add_argument("--rounds", type=int, default=20, help=f"of {COHORT} workers each")
    parser.add_argument("--rest-s", type=float, default=600.0, help="for how long nothing is to happen")
    parser.add_argument("--training-s", type=float, default=0.5, help="from an assignment to its update")
    parser.add_argument("--json", action="store_true", help="JSON lines for machines; the last is a summary")
    given = parser.parse_args()
    plan = Plan(given.workers, given.processes, given.rounds, given.rest_s, given.training_s)
    return plan, given.json


def main() -> int:
    plan, json_lines = _plan()
    output = output_for(json_lines)
    with ending(output):
        figures = run_interruptibly(measure(plan, output))
    output.summary(figures.table(), asdict(figures) | {"meets_the_bars": figures.meets_the_bars()})
    return 0 if figures.meets_the_bars() else 1


if __name__ == "__main__":
    sys.exit(main())
