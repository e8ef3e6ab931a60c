# SPDX-License-Identifier: Apache-2.0
"""The benchmark of a round measures what it says, in real processes, and believes no wrong aggregate."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.exchange.floors import Work, honest_rounds, tcp_seconds

ROOT = Path(__file__).parents[2]
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@needs_proc
def test_a_small_round_is_measured_against_its_floors() -> None:
    command = [sys.executable, "-m", "benchmarks.round_cost", "--mb", "0.2", "--workers", "2"]
    done = subprocess.run(
        [*command, "--rounds", "3", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["event"] == "measured"
    assert len(row["round_seconds_each"]) == 3
    assert row["round_seconds"] > row["floor_tcp_seconds"] > 0
    assert row["over_floor"] == pytest.approx(row["round_seconds"] / row["floor_seconds"], abs=0.01)
    assert 0 < row["floor_server_cpu_s"] < row["server_cpu_s_per_round"]
    assert row["aggregate_max_error"] < 1e-5
    assert row["models_moved"] >= 2  # down and up; others may use the loopback device as well
    assert row["server_peak_bytes"] > 0


@needs_proc
def test_the_floors_move_what_a_round_moves(tmp_path: Path) -> None:
    work = Work(model_bytes=400_000, workers=3)
    assert len(tcp_seconds(work, 2)) == len(honest_rounds(work, 2, tmp_path / "floor")) == 2
    assert not (tmp_path / "floor").exists()
