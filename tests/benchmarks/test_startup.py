# SPDX-License-Identifier: Apache-2.0
"""The benchmark of starts: what it makes of what it has seen, and what it does with a process that fails."""

import sys

import pytest

from benchmarks.startup import Took, moments, row, sentence, to_the_end
from protocol.errors import Internal

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SAYS = """
import json, sys
for event in sys.argv[2:]:
    print(json.dumps({"event": event}), flush=True)
sys.stdin.read() if sys.argv[1] == "ends" else __import__("time").sleep(600)
"""


def says(how: str, *events: str) -> list[str]:
    return [sys.executable, "-P", "-c", SAYS, how, *events]


def test_one_slow_start_moves_neither_the_median_nor_the_least() -> None:
    fields = row("server", [Took(1.25, 1.0), Took(9.0, 1.5), Took(1.0, 0.875)])
    assert (fields["median_seconds"], fields["least_seconds"], fields["median_cpu_s"]) == (1.25, 1.0, 1.0)
    assert sentence(fields) == "1.25 s (least 1.00 s), 1.00 s of a core"


def test_a_process_that_computes_is_charged_for_it_and_its_time() -> None:
    busy = "import time\nwhile time.process_time() < 0.3: pass"
    took = to_the_end([sys.executable, "-c", busy])
    assert took.seconds >= took.cpu_s * 0.9 > 0.25


def test_a_process_that_fails_is_no_measurement() -> None:
    with pytest.raises(Internal, match="ended with 3"):
        to_the_end([sys.executable, "-c", "raise SystemExit(3)"])


@needs_proc
async def test_each_event_counts_when_it_is_told_of_first() -> None:
    found = await moments(says("lives", "a", "other", "b", "a"), {"b": "second", "a": "first"})
    assert list(found) == ["first", "second"]
    assert 0 < found["first"].seconds <= found["second"].seconds


@needs_proc
async def test_a_process_that_ends_before_it_has_told_of_all_is_no_measurement() -> None:
    with pytest.raises(Internal, match="ended early"):
        await moments(says("ends", "a"), {"a": "first", "b": "second"})
