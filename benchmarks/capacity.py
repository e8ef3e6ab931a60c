# SPDX-License-Identifier: Apache-2.0
"""What one server of several carries, and what each update and each idle worker costs the stores they share.

    python -m benchmarks.capacity                                   the tables of docs/explanation/capacity.md
    python -m benchmarks.capacity --parts idle --lost-after-s 20 --rest-s 40     … of what waiting writes down
    python -m benchmarks.capacity --replicas 1 2 --workers 200 --uploads 1x4      a quick look

Real server processes on one PostgreSQL and one S3 (SeaweedFS), both started for the purpose, behind a
balancer that spreads connections; all of it on loopback. For each number of servers:

    idle      a crowd waits: processor time of each server and of the database, memory, the lock
    tiny      then rounds whose updates are a few numbers: what is left is requests, rows and the lock
    members   (once) a run of many members: what is read of all of them whenever a round ends
    uploads   rounds without training, whose updates are `MBxWORKERS`, on stores of their own

The balancer is in this process, the crowd in two more and each worker of a round of uploads in one: they
share the cores with the servers, so look at processor time, which does not wait for one. Linux only.
"""

import argparse
import resource
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cluster import figures, idle, members, uploads
from benchmarks.cluster.figures import columns, number
from benchmarks.cluster.stores import StoreProcesses, store_processes
from benchmarks.ending import ending
from benchmarks.exchange.rounds import Plan as UploadPlan
from fed_sophia.interruptible import run_interruptibly
from fed_sophia.output import Fields, Output, output_for

PARTS = ("idle", "members", "uploads")
PERCENT = 100

SIGNED = {
    "a second": number("per_s"),
    "server, ms of a core each": number("server_cpu_ms"),
    "database, ms of a core each": number("postgres_cpu_ms"),
    "lock held, ms each": number("lock_ms"),
    "at most a second, by the lock": number("ceiling_per_s", ".0f"),
    "database grows, bytes each": number("database_bytes", ".0f"),
}
RESTED = {
    "waiting at each": number("waiting_each", ".0f"),
    "come back a second, in all": number("returns_per_s"),
    "each server, % of a core": number("server_cpu_each", ".1f", PERCENT),
    "all servers, % of a core": number("server_cpu_sum", ".1f", PERCENT),
    "a server with nobody, % of a core": number("server_cpu_alone", ".1f", PERCENT),
    "server, ms of a core a return": number("server_cpu_ms_per_return", ".2f"),
    "… % of a core for 1,000 who wait 600 s": number("server_cpu_per_1000_workers", ".2f", PERCENT),
    "database, % of a core": number("postgres_cpu", ".1f", PERCENT),
    "database, ms of a core a return": number("postgres_cpu_ms_per_return", ".2f"),
    "… % of a core for 1,000 such": number("postgres_cpu_per_1000_workers", ".2f", PERCENT),
    "memory of each, kB a worker": number("bytes_per_worker_each", ".1f", 0.001),
    "rows written a second": number("rows_per_s"),
    "lock held, ms a row": number("lock_ms_per_row", ".2f"),
    "transitions a second": number("transitions_per_s", ".2f"),
    "lock held, % of the time": number("lock_share", ".2f", PERCENT),
    "one server at 70 %, returns a second": number("carries_returns_per_s", ".0f"),
    "one server at 70 %, idle workers": number("carries_workers", ".0f"),
}
ADMITTED = {
    "updates a second": number("updates_per_s"),
    "each server, % of a core": number("server_cpu_each", ".1f", PERCENT),
    "server, ms of a core an update": number("server_cpu_ms"),
    "database, ms of a core an update": number("postgres_cpu_ms"),
    "store, ms of a core an update": number("store_cpu_ms"),
    "commits an update": number("commits"),
    "transitions an update": number("transitions", ".2f"),
    "lock held, % of the time": number("lock_share", ".1f", PERCENT),
    "wait for it, on average": number("lock_queue", ".2f"),
    "lock held, ms an update": number("lock_ms", ".2f"),
    "at most updates a second, by the lock": number("ceiling_per_s", ".0f"),
    "database grows, bytes an update": number("database_bytes", ".0f"),
}
LISTED = {
    "to read who may be invited, s": number("slots_s", ".2f"),
    "… µs a member": number("slots_us_each", ".2f"),
    "to ask who has been silent, s": number("silent_s", ".3f"),
    "database, bytes a member": number("database_bytes", ".0f"),
}
UPLOADED = {
    "a round, s": number("round_seconds", ".2f"),
    "MB of updates a second": number("mb_per_s"),
    "server, ms of a core an update": number("server_cpu_ms"),
    "server, ms of a core a MB": number("server_cpu_ms_per_mb"),
    "database, ms of a core an update": number("postgres_cpu_ms"),
    "store, ms of a core an update": number("store_cpu_ms"),
    "aggregation, MB of updates a second": number("aggregation_mb_per_s", ".0f"),
    "commits a round": number("commits_per_round"),
    "transitions a round": number("transitions_per_round"),
    "lock held, ms an update": number("lock_ms"),
    "at most updates a second, by the lock": number("ceiling_per_s", ".0f"),
    "one server at 70 %, updates a second": number("carries_updates_per_s"),
    "one server at 70 %, MB of updates a second": number("carries_mb_per_s", ".0f"),
}


async def measure(given: argparse.Namespace, output: Output) -> tuple[str, Fields]:
    """(tables, figures) of the parts that were asked for.

    Raises:
        FedSophiaError: a store is not installed, a process has failed, or an aggregate is wrong.
    """
    tables: list[str] = []
    found: Fields = {}
    with (
        tempfile.TemporaryDirectory(prefix="fed-sophia-capacity-", ignore_cleanup_errors=True) as name,
        store_processes() as stores,
    ):
        if "idle" in given.parts:
            tables += await _idle(given, stores, Path(name, "idle"), output, found)
        if "members" in given.parts:
            tables += await _members(given, stores, output, found)
        if "uploads" in given.parts:
            tables += await _uploads(given, stores, Path(name, "uploads"), output, found)
    return "\n\n".join(tables), found


async def _idle(
    given: argparse.Namespace, stores: StoreProcesses, folder: Path, output: Output, found: Fields
) -> list[str]:
    plan = idle.Plan(
        given.replicas,
        given.workers,
        given.processes,
        given.alone_s,
        given.rest_s,
        given.max_wait_s,
        given.lost_after_s,
        min(given.cohort, given.workers),
        given.rounds,
    )
    seen = await idle.measure(plan, stores, folder, output)
    rows = {
        "enrolled": [figures.signed(each) for each in seen.enrolled],
        "renewed": [figures.signed(each) for each in seen.renewed],
        "rested": [figures.rested(each) for each in seen.rested],
        "tiny": [figures.admitted(each) for each in seen.admitted],
    }
    for event, all_fields in rows.items():
        for fields in all_fields:
            output.event(event, "", fields)
    found |= rows
    return [
        columns(f"{given.workers} workers enrol, one transaction each", SIGNED, rows["enrolled"]),
        columns("… and are given an access token, another", SIGNED, rows["renewed"]),
        columns(f"{given.workers} workers wait", RESTED, rows["rested"]),
        columns(f"rounds of {plan.cohort} tiny updates", ADMITTED, rows["tiny"]),
    ]


async def _members(
    given: argparse.Namespace, stores: StoreProcesses, output: Output, found: Fields
) -> list[str]:
    fields = figures.listed(await members.measure(given.members, stores.new("members")))
    output.event("members", "", fields)
    found["members"] = [fields]
    return [columns(f"{given.members} members", LISTED, [fields])]


async def _uploads(
    given: argparse.Namespace, stores: StoreProcesses, folder: Path, output: Output, found: Fields
) -> list[str]:
    tables, rows = [], []
    for at, (megabytes, workers) in enumerate(given.uploads):
        plan = UploadPlan(megabytes, workers, given.upload_rounds, presigned=given.presigned)
        of_plan = []
        for count in given.replicas:
            seen = await uploads.measure(count, plan, stores, folder / f"{at}-{count}")
            of_plan.append(figures.uploaded(seen))
            output.event("uploads", f"{plan.name} at {count} servers: measured", of_plan[-1])
        tables.append(columns(f"rounds of {plan.name}", UPLOADED, of_plan))
        rows += of_plan
    found["uploads"] = rows
    return tables


def _upload(text: str) -> tuple[float, int]:
    megabytes, _, workers = text.partition("x")
    return float(megabytes), int(workers)


def _arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity", description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what is measured")
    parser.add_argument(
        "--replicas", nargs="+", type=int, default=[1, 2, 3], help="how many servers, in turn"
    )
    parser.add_argument("--workers", type=int, default=2000, help="how many wait")
    parser.add_argument("--processes", type=int, default=2, help="that hold them")
    parser.add_argument(
        "--alone-s", type=float, default=5.0, help="how long servers are looked at before any comes"
    )
    parser.add_argument("--rest-s", type=float, default=20.0, help="how long the waiting is looked at")
    parser.add_argument(
        "--max-wait-s", type=int, default=20, help="the servers' FED_SOPHIA_MAX_WAIT_S; rest no shorter"
    )
    parser.add_argument(
        "--lost-after-s",
        type=int,
        default=3600,
        help="the servers' FED_SOPHIA_LOST_AFTER_S: a row is written a worker in half of it",
    )
    parser.add_argument("--cohort", type=int, default=200, help="tiny updates in a round")
    parser.add_argument(
        "--rounds", type=int, default=1, help="of tiny updates, after one that is not measured"
    )
    parser.add_argument("--members", type=int, default=200_000, help="of a run, as rows")
    parser.add_argument(
        "--uploads", nargs="+", type=_upload, default=[(1.0, 16), (25.0, 4)], help="MBxWORKERS of a round"
    )
    parser.add_argument(
        "--presigned", action="store_true", help="let their workers exchange tensors with the store itself"
    )
    parser.add_argument("--upload-rounds", type=int, default=4, help="of each of these")
    parser.add_argument("--json", action="store_true", help="JSON lines for machines; the last is a summary")
    return parser.parse_args(argv)


def main() -> int:
    given = _arguments()
    output = output_for(given.json)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection is three of the balancer's side
    with ending(output):
        text, found = run_interruptibly(measure(given, output))
    output.summary(text, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
