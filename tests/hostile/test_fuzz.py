# SPDX-License-Identifier: Apache-2.0
"""The fuzz targets hold for every input that was kept, and a coverage-guided fuzzer finds no other."""

import gc
import importlib.util
import os
import platform
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile import fuzz_encodings, fuzz_frame_reader

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TARGETS = {"frame-reader": fuzz_frame_reader, "encodings": fuzz_encodings}
SECONDS = int(os.environ.get("FED_SOPHIA_FUZZ_S", "30"))
"""For each target; 0 leaves the fuzzer out."""
HAS_WHEEL = (sys.platform, platform.machine()) == ("linux", "x86_64") and sys.version_info < (3, 14)
MOST_MEMORY_MB = 256
every_target = pytest.mark.parametrize("target", TARGETS)


def kept(target: str) -> list[Path]:
    return sorted((HERE / "corpus" / target).iterdir())


@every_target
def test_what_a_fuzzer_found_interesting_breaks_no_promise(target: str) -> None:
    inputs = [path.read_bytes() for path in kept(target)]
    assert inputs
    for each in [*TARGETS[target].seeds(), *inputs]:
        TARGETS[target].check(each)


@every_target
def test_thousands_of_inputs_leave_nothing_behind(target: str) -> None:
    """In objects that Python counts: the resident memory of a process also holds what its allocator keeps."""
    chance = random.Random(1)
    messages = [*TARGETS[target].seeds(), *(path.read_bytes() for path in kept(target))]

    def blocks_after(count: int) -> int:
        for _ in range(count):
            TARGETS[target].check(TARGETS[target].mutated(chance.choice(messages), chance))
        gc.collect()
        return sys.getallocatedblocks()

    before = blocks_after(4_000)
    assert blocks_after(4_000) - before < 400, "each tenth input or more has left something"


def test_what_is_kept_is_small() -> None:
    assert sum(path.stat().st_size for target in TARGETS for path in kept(target)) < 300_000


@every_target
def test_a_fuzzer_finds_nothing_new(
    target: str, tmp_path: Path, require_part: Callable[[bool, str], None]
) -> None:
    if not SECONDS:
        pytest.skip("FED_SOPHIA_FUZZ_S is 0")
    if not HAS_WHEEL:
        pytest.skip("atheris is made for Linux on x86-64 and Python before 3.14")
    require_part(importlib.util.find_spec("atheris") is not None, "atheris")
    # by a shell that forks: what the fuzzer takes for its own peak of memory includes that of who forked it
    forking = ["sh", "-c", '"$@"; exit $?', "sh"]
    command = [*forking, sys.executable, "-W", "error", "-m", "tests.hostile.fuzz", target]
    options = ["--seconds", str(SECONDS), "--seed", "1", "--found", str(tmp_path)]
    fuzz = subprocess.run(
        [*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS + 90, check=False
    )
    assert fuzz.returncode == 0, fuzz.stderr[-4_000:]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(("crash-", "timeout-", "oom-"))]
    numbers = dict(re.findall(r"^stat::(\w+):\s+(\d+)$", fuzz.stderr, re.MULTILINE))
    assert int(numbers["number_of_executed_units"]) > 100 * SECONDS
    assert int(numbers["peak_rss_mb"]) < MOST_MEMORY_MB
