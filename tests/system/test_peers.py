# SPDX-License-Identifier: Apache-2.0
"""The peers that are installed have their rounds, in their own processes, and believe no wrong aggregate."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.peers.measuring import PEERS
from benchmarks.peers.peer import Plan

ROOT = Path(__file__).parents[2]
PLAN = Plan(mb=0.2, workers=2, rounds=3)


def installed(peer: str) -> pytest.MarkDecorator:
    found = (PEERS[peer].environment / ".installed").exists()
    return pytest.mark.skipif(not found, reason=f"{peer} is not installed: `make bench-peers` does it")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.timeout(PLAN.time_limit_s() + 60)
@pytest.mark.parametrize("peer", [pytest.param(peer, marks=installed(peer)) for peer in sorted(PEERS)])
def test_a_small_federation_of_a_peer_is_measured(peer: str, tmp_path: Path) -> None:
    numbers = ["--mb", str(PLAN.mb), "--workers", str(PLAN.workers), "--rounds", str(PLAN.rounds)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", peer, *numbers, "--folder", str(tmp_path), "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PLAN.time_limit_s() + 30,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    pinned = (ROOT / "benchmarks" / "peers" / f"{peer}.txt").read_text(encoding="utf-8")
    assert f"=={found['version']}\n" in pinned
    assert len(found["round_seconds_each"]) == PLAN.rounds
    assert min(found["round_seconds_each"]) > 0
    assert found["aggregate_max_error"] < 1e-5
    assert found["server_cpu_s_per_round"] > 0
    assert found["server_peak_rss_bytes"] > 1_000_000
    if found["lo_bytes_per_round"] is not None:  # as root only
        assert found["lo_bytes_per_round"] > 2 * PLAN.workers * PLAN.mb * 1e6
