# SPDX-License-Identifier: Apache-2.0
"""Whatever becomes of a peer, none of its processes outlives its measurement."""

import asyncio
import sys
from pathlib import Path

import pytest

from benchmarks.peers.measuring import measure
from benchmarks.peers.peer import Peer, Place, Plan
from benchmarks.peers.processes import PeerProcesses
from benchmarks.peers.procfs import MarkedProcesses
from protocol.errors import Internal

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

PLAN = Plan(mb=1, workers=1, rounds=2)
WAITS = "import time; time.sleep(600)"
LEAVES_AN_ORPHAN = f"""
import subprocess, sys
subprocess.Popen([sys.executable, "-c", {WAITS!r}], start_new_session=True)
"""
REPORTS = """
import json, pathlib, sys, time
rounds = []
for number in (1, 2):
    began = time.monotonic()
    while time.process_time() < number * 0.4: pass
    rounds.append([began, time.monotonic(), 1])
report = {"version": "1.0", "rounds": rounds, "failures": [], "largest_error": 0.0}
path = pathlib.Path(sys.argv[1])
path.with_suffix(".part").write_text(json.dumps(report))
path.with_suffix(".part").replace(path)
time.sleep(600)
"""


class APeer:
    """A federation of plain Python processes; it remembers what it started."""

    def __init__(self, environment: Path, server: str, worker: str = WAITS) -> None:
        environment.mkdir()
        (environment / ".installed").touch()
        self.peer = Peer("plain", environment, self._begin, lambda _: {})
        self._server, self._worker = server, worker
        self.begun = asyncio.Event()
        self._marks: tuple[str, ...] = ()

    async def _begin(self, plan: Plan, place: Place, processes: PeerProcesses) -> None:
        self._marks = (processes.server_mark, processes.workers_mark)
        await processes.start_worker("worker", [sys.executable, "-c", self._worker])
        await processes.command("orphan", [sys.executable, "-c", LEAVES_AN_ORPHAN])
        await processes.start_server("server", [sys.executable, "-c", self._server, str(place.report)])
        self.begun.set()

    def living(self) -> int:
        token = self._marks[0].removesuffix("-server")
        marks = (*self._marks, f"{token}-command")
        return sum(len(MarkedProcesses(mark).now()) for mark in marks)


async def test_a_peer_that_reports_is_measured_and_ended(tmp_path: Path) -> None:
    plain = APeer(tmp_path / "environment", REPORTS)
    found = await measure(plain.peer, PLAN, tmp_path, 60.0, network_is_private=False)
    assert found.version == "1.0"
    assert found.server_peak_rss_bytes > 1_000_000
    assert found.server_cpu_s_per_round == pytest.approx(0.4, abs=0.2)
    assert found.start_seconds > 0
    assert plain.living() == 0


async def test_a_peer_that_does_not_report_is_ended_at_the_time_limit(tmp_path: Path) -> None:
    plain = APeer(tmp_path / "environment", WAITS)
    with pytest.raises(Internal, match="took longer than 3 s"):
        await measure(plain.peer, PLAN, tmp_path, 3.0, network_is_private=False)
    assert plain.living() == 0


async def test_a_peer_is_ended_when_its_measurement_is_cancelled(tmp_path: Path) -> None:
    plain = APeer(tmp_path / "environment", WAITS)
    measuring = asyncio.create_task(measure(plain.peer, PLAN, tmp_path, 60.0, network_is_private=False))
    await asyncio.wait_for(plain.begun.wait(), 30)
    assert plain.living() == 3  # server, worker, and what the command has left behind
    measuring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await measuring
    assert plain.living() == 0


async def test_a_worker_that_ends_early_is_told_of_in_its_last_words(tmp_path: Path) -> None:
    plain = APeer(tmp_path / "environment", WAITS, "raise SystemExit('no disk left')")
    with pytest.raises(Internal, match=r"plain: worker ended early .* no disk left"):
        await measure(plain.peer, PLAN, tmp_path, 60.0, network_is_private=False)
    assert plain.living() == 0
