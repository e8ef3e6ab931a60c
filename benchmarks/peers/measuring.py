# SPDX-License-Identifier: Apache-2.0
"""Measures one peer's federation in processes of this process."""

import asyncio
import os
import tempfile
import time
from pathlib import Path

from benchmarks.peers.figures import Figures, Report, figures, read_report
from benchmarks.peers.flower import FLOWER
from benchmarks.peers.metering import Meter
from benchmarks.peers.nvflare import NVFLARE
from benchmarks.peers.peer import Peer, Place, Plan
from benchmarks.peers.processes import PeerProcesses, last_words
from fed_sophia.federation import side_by_side
from protocol.errors import Internal

PEERS = {peer.name: peer for peer in (FLOWER, NVFLARE)}
LOOK_S = 0.1
SHOWN = 2
"""Of whose last words a failure tells: the server's, and the first worker's."""


async def measure(peer: Peer, plan: Plan, folder: Path, within_s: float, network_is_private: bool) -> Figures:
    """Start the peer, let it run its rounds, end all its processes; files and logs stay in the folder.

    Args:
        within_s: from the start of the first process to the end of the last round.
        network_is_private: whether `lo` holds only what the peer sends.

    Raises:
        InvalidUsage: the plan is none, or the peer is not installed.
        Internal: the peer has failed, or takes too long.
    """
    plan.check()
    place = peer.place(Path(tempfile.mkdtemp(prefix=f"{peer.name}-", dir=folder)))
    processes = PeerProcesses(place.folder, place.variables(os.environ) | dict(peer.settings(place)))
    meter, began_s = Meter(processes.server_mark, processes.workers_mark), time.monotonic()
    try:
        async with asyncio.timeout(within_s), side_by_side([meter.run()]):
            await peer.begin(plan, place, processes)
            await _until_reported(place, processes)
        meter.look()
        report = _report(plan, place, processes)
    except TimeoutError:
        late = f"{plan.workers} workers and {plan.rounds} rounds took longer than {within_s:.0f} s"
        raise Internal(f"{peer.name}: {late}: {last_words(processes.logs()[:SHOWN])}") from None
    except Internal as error:
        raise Internal(f"{peer.name}: {error.detail}") from None
    finally:
        await processes.stop()
    return figures(report, meter.samples, began_s, network_is_private)


async def _until_reported(place: Place, processes: PeerProcesses) -> None:
    while not place.report.exists():
        processes.check_alive()
        await asyncio.sleep(LOOK_S)


def _report(plan: Plan, place: Place, processes: PeerProcesses) -> Report:
    try:
        return read_report(place.report, plan.workers, plan.rounds)
    except Internal as error:
        raise Internal(f"{error.detail}: {last_words(processes.logs()[:SHOWN])}") from None
