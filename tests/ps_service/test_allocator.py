# SPDX-License-Identifier: Apache-2.0
"""What is freed is there for the next buffer: a process of its own, since an allocator is told once."""

import subprocess
import sys

import pytest

SOME_BUFFERS = """
import resource, sys
import numpy as np
from ps_service.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def fill():
    buffers = [np.ones(256 * 1024, np.float32) for _ in range(8)]
    sums = buffers[0] + buffers[1]
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 50 * 9 * 256
"""Of 4 KiB, that were written to."""


def faults(allocator):
    done = subprocess.run(
        [sys.executable, "-c", SOME_BUFFERS, allocator],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return int(done.stdout)


def test_buffers_are_not_got_from_the_system_again_and_again():
    if faults("as it is") < PAGES / 20:
        pytest.skip("this allocator keeps what is freed without being told to")
    assert faults("kept") < PAGES / 20
