# SPDX-License-Identifier: Apache-2.0
"""A state directory has one user at a time, and says so when it cannot be written to."""

import subprocess
import sys
from pathlib import Path

import pytest

from protocol.errors import InvalidUsage, StateNotWritable
from worker.durable import prove_writable, sole_user

TAKE_AND_DIE = """
import os, sys
from pathlib import Path
from worker.durable import sole_user
with sole_user(Path(sys.argv[1])):
    os.kill(os.getpid(), 9)
"""
TAKE = """
import sys
from pathlib import Path
from worker.durable import sole_user
with sole_user(Path(sys.argv[1])):
    pass
"""


def another_process(program: str, directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, str(directory)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_another_process_is_kept_out_and_told_of_which_directory(tmp_path: Path):
    with sole_user(tmp_path / "state"):
        kept_out = another_process(TAKE, tmp_path / "state")
    assert kept_out.returncode == 1
    assert "InvalidUsage" in kept_out.stderr
    assert f"state directory {tmp_path / 'state'}" in kept_out.stderr
    assert another_process(TAKE, tmp_path / "state").returncode == 0


def test_a_killed_process_leaves_the_directory_to_the_next(tmp_path: Path):
    assert another_process(TAKE_AND_DIE, tmp_path).returncode == -9
    with sole_user(tmp_path):
        pass


def test_a_second_worker_of_one_process_is_kept_out_too(tmp_path: Path):
    with sole_user(tmp_path), pytest.raises(InvalidUsage), sole_user(tmp_path):
        raise AssertionError


def test_a_directory_that_is_a_file_is_named(tmp_path: Path):
    (tmp_path / "state").write_bytes(b"")
    with pytest.raises(StateNotWritable, match=str(tmp_path / "state")), sole_user(tmp_path / "state"):
        raise AssertionError


def test_proving_a_directory_writable_leaves_nothing_in_it(tmp_path: Path):
    (tmp_path / ".probe").write_bytes(b"left by a process that was killed")
    prove_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_to_is_named(tmp_path: Path):
    with pytest.raises(StateNotWritable, match=f"{tmp_path / 'gone'}: No such file"):
        prove_writable(tmp_path / "gone")
