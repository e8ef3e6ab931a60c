# SPDX-License-Identifier: Apache-2.0
"""The benchmark of virtual workers holds its rounds and tells what they took."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKERS = 12


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_rounds_of_a_few_virtual_workers_are_measured() -> None:
    numbers = ["--workers", str(WORKERS), "--processes", "2", "--stack", "4", "--rounds", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.virtual_workers", *numbers, "--local-steps", "2", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    rounds = [line for line in lines if line.get("event") == "round"]
    assert [round_["admitted"] for round_ in rounds] == [WORKERS] * 2
    assert rounds[1]["train_loss"] < rounds[0]["train_loss"]
    found = lines[-1]
    assert [round_["round_s"] for round_ in rounds] == found["round_s"]
    assert min(found["server_cpu_s"], found["swarm_cpu_s"], found["server_mb"], found["swarm_mb"]) > 0
