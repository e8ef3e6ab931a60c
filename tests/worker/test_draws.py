# SPDX-License-Identifier: Apache-2.0
"""Several workers of a process seed torch at the same time."""

import subprocess
import sys

_MANY_SEED_AT_ONCE = """
import gc, threading, torch
from worker.draws import torch_seeded

def work():
    for seed in range(400):
        garbage = [torch.zeros(3)]
        garbage.append(garbage)
        with torch_seeded(seed, torch.device("cpu")):
            pass

gc.set_threshold(20)
threads = [threading.Thread(target=work, daemon=True) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_threads_that_seed_torch_among_garbage_do_not_wait_for_each_other_for_ever() -> None:
    """A look for garbage frees tensors in the middle of reading a generator's state."""
    ended = subprocess.run(
        [sys.executable, "-c", _MANY_SEED_AT_ONCE], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
