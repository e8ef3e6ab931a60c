# SPDX-License-Identifier: Apache-2.0
"""What a synchronous round costs beside its training, against what its bytes alone cost on this machine.

    python -m benchmarks.round_cost                             the rows of docs/explanation/performance.md
    python -m benchmarks.round_cost --mb 25 --workers 8         one row
    python -m benchmarks.round_cost --mb 25 --workers 8 --peer nvflare

A real server process and N real worker processes over loopback; a worker returns a constant delta, and the
aggregate is checked at every coordinate. A round lasts from its opening to the opening of the next; the
median leaves out the first. The floors (`benchmarks/exchange/floors.py`) are taken before and after, in
the same run. With `--peer`, another framework does the same right after (`benchmarks/peers`): its own FedAvg,
whatever our algorithm, and arrays of the same size. `make bench-peers` installs them.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

from benchmarks.ending import ending
from benchmarks.exchange.floors import HonestRound, Work, honest_rounds, tcp_seconds
from benchmarks.exchange.rounds import Figures, Plan, measure
from benchmarks.peers.figures import Figures as PeerFigures
from benchmarks.peers.measuring import PEERS
from benchmarks.peers.peer import Plan as PeerPlan
from benchmarks.peers.running import measure_peer
from fed_sophia.interruptible import run_interruptibly
from fed_sophia.options import named_values
from fed_sophia.output import Fields, Output, output_for
from protocol.algorithms import ALGORITHMS

ROWS = ((25, 8), (100, 2), (1, 32), (600, 2))
FLOOR_REPEATS = 3
"""Before, and after."""


def row(plan: Plan, figures: Figures, tcp_s: Sequence[float], honest: Sequence[HonestRound]) -> Fields:
    """What one line of JSON says."""
    seconds = median(figures.round_seconds_each[1:])
    honest_s = [each.seconds for each in honest]
    return {
        "mb": plan.megabytes,
        "workers": plan.workers,
        "rounds": plan.rounds,
        "algorithm": plan.algorithm,
        "round_seconds": seconds,
        "floor_seconds": median(honest_s),
        "floor_tcp_seconds": median(tcp_s),
        "floor_server_cpu_s": median(each.server_cpu_s for each in honest),
        "over_floor": round(seconds / median(honest_s), 2),
        "over_tcp": round(seconds / median(tcp_s), 2),
        "models_moved": round(figures.lo_bytes_per_round / plan.model_bytes / plan.workers, 3),
        **asdict(figures),
        "floor_seconds_each": honest_s,
        "floor_tcp_seconds_each": list(tcp_s),
    }


def sentence(fields: Fields) -> str:
    memory = (fields["server_peak_bytes"] - fields["server_idle_bytes"]) / 1e6  # type: ignore[operator]
    return (
        f"{fields['mb']:g} MB × {fields['workers']}: {fields['round_seconds']:.2f} s a round, "
        f"{fields['over_floor']} × the honest floor, {fields['over_tcp']} × TCP alone; the server took "
        f"{fields['server_cpu_s_per_round']:.2f} s of a core and {memory:.0f} MB above idle; "
        f"{fields['loop_lag_over_20ms']} of {fields['loop_lags_seen']} looks found its loop 20 ms late"
    )


def peer_row(peer: str, plan: Plan, ours_s: Sequence[float], theirs: PeerFigures) -> Fields:
    """What one line of JSON says of a peer; the first rounds are left out on both sides."""
    seconds = median(theirs.round_seconds_each[1:])
    return {
        "peer": peer,
        "mb": plan.megabytes,
        "workers": plan.workers,
        "rounds": plan.rounds,
        "round_seconds": seconds,
        "times_faster": round(seconds / median(ours_s[1:]), 2),
        **asdict(theirs),
    }


def peer_sentence(fields: Fields) -> str:
    return (
        f"{fields['mb']:g} MB × {fields['workers']} in {fields['peer']} {fields['version']}: "
        f"{fields['round_seconds']:.2f} s a round, {fields['times_faster']} × ours"
    )


async def measure_all(plans: Sequence[Plan], peers: Sequence[str], output: Output) -> list[Fields]:
    """A row for each plan, and one for each peer after it, shown as they are had.

    Raises:
        InvalidUsage: a peer is not installed; nothing has been measured then.
        Internal: a process has failed, or an aggregate is not what it must be.
    """
    for peer in peers:
        PEERS[peer].check_installed()
    rows = []
    for plan in plans:
        work = Work(plan.model_bytes, plan.workers)
        with tempfile.TemporaryDirectory(prefix="fed-sophia-round-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            tcp_s, honest = await asyncio.to_thread(_floors, work, folder / "floor-before")
            figures = await measure(plan, folder / "federation", output)
            after = await asyncio.to_thread(_floors, work, folder / "floor-after")
            rows.append(row(plan, figures, [*tcp_s, *after[0]], [*honest, *after[1]]))
            output.event("measured", sentence(rows[-1]), rows[-1])
            for peer in peers:
                same = PeerPlan(plan.megabytes, plan.workers, plan.rounds)
                theirs = await measure_peer(peer, same, folder / peer)
                rows.append(peer_row(peer, plan, figures.round_seconds_each, theirs))
                output.event("peer-measured", peer_sentence(rows[-1]), rows[-1])
    return rows


def _floors(work: Work, folder: Path) -> tuple[list[float], list[HonestRound]]:
    os.sync()  # what others have written is not charged to these
    return tcp_seconds(work, FLOOR_REPEATS), honest_rounds(work, FLOOR_REPEATS, folder)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.round_cost", description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--mb", type=float, help="size of the model, 10^6 bytes; without it, all the rows")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument(
        "--algorithm",
        default="fedavg",
        choices=[name for name, row in ALGORITHMS.items() if set(row.combiners) == {"delta"}],
        help="one whose workers send a delta and nothing else; fed-sophia adds the check of its bound",
    )
    parser.add_argument("--encoding", action="append", default=[], metavar="BUNDLE=ENCODING")
    parser.add_argument("--peer", action="append", default=[], choices=sorted(PEERS), help="repeatable")
    parser.add_argument("--json", action="store_true", help="JSON lines for machines")
    given = parser.parse_args()
    if given.rounds < 2:
        parser.error("--rounds: at least 2, since the first is left out")
    return given


def _plans(given: argparse.Namespace) -> list[Plan]:
    rows = ROWS if given.mb is None else ((given.mb, given.workers),)
    encodings = named_values(given.encoding, "--encoding")
    return [Plan(mb, workers, given.rounds, given.algorithm, encodings) for mb, workers in rows]


def main() -> int:
    given = _arguments()
    output = output_for(given.json)
    with ending(output):
        run_interruptibly(measure_all(_plans(given), given.peer, output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
