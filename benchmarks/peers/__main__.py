# SPDX-License-Identifier: Apache-2.0
"""What a synchronous round without training costs in another framework.

    python -m benchmarks.peers flower --mb 25 --workers 8 --rounds 5
    python -m benchmarks.peers nvflare --mb 25 --workers 8 --rounds 5 --json

`make bench-peers` installs the peers first. Real processes over loopback: each worker returns the 20 float32
arrays that it received plus a constant of its own, weighted; the last aggregate is compared with the exact
one, element by element. Linux only. As root, all of it runs in a network of its own, whose `lo` counts the
bytes; else they are not told.
"""

import argparse
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks.crowd.figures import table
from benchmarks.ending import ending
from benchmarks.peers.figures import Figures
from benchmarks.peers.loopback import enter_private_network
from benchmarks.peers.measuring import PEERS, measure
from benchmarks.peers.peer import Plan
from fed_sophia.interruptible import run_interruptibly
from fed_sophia.output import output_for, size_text
from fed_sophia.parent_watch import exit_with_parent


def shown(plan: Plan, found: Figures) -> str:
    lo = found.lo_bytes_per_round
    return table(
        {
            "version": found.version,
            "model": f"{plan.mb:g} MB, {plan.workers} workers",
            "first round after": f"{found.start_seconds:.1f} s",
            "rounds": ", ".join(f"{seconds:.2f}" for seconds in found.round_seconds_each) + " s",
            "on loopback, a round": "not told: it takes root" if lo is None else size_text(lo),
            "processor, a round": f"server {found.server_cpu_s_per_round:.2f} s, "
            f"workers {found.workers_cpu_s_per_round:.2f} s",
            "memory of the server": size_text(found.server_peak_rss_bytes),
            "largest error": f"{found.aggregate_max_error:.1e}",
        }
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("peer", choices=sorted(PEERS))
    parser.add_argument("--mb", type=float, default=25.0, help="of the arrays together, 10^6 bytes")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where its files and logs stay; else they are removed")
    parser.add_argument("--json", action="store_true", help="one JSON line for machines")
    parser.add_argument("--exit-with-parent", action="store_true", help="stop when standard input ends")
    return parser.parse_args()


def main() -> int:
    given = _arguments()
    output = output_for(given.json)
    plan = Plan(given.mb, given.workers, given.rounds)
    network_is_private = enter_private_network()
    if given.exit_with_parent:
        exit_with_parent()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="fed-sophia-peer-"))
    try:
        with ending(output):
            folder.mkdir(parents=True, exist_ok=True)
            measuring = measure(
                PEERS[given.peer], plan, folder.resolve(), plan.time_limit_s(), network_is_private
            )
            found = run_interruptibly(measuring)
    finally:
        if given.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    output.summary(shown(plan, found), {"peer": given.peer} | asdict(plan) | asdict(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
