# SPDX-License-Identifier: Apache-2.0
"""The command line inside the test's process."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from fed_sophia.cli import run_command


class Ended(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def fed_sophia(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """Run a command in an empty folder, with these variables and no other of ours."""
    for name in [name for name in os.environ if name.startswith("FED_SOPHIA_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, **variables: str) -> Ended:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        code = run_command(list(arguments))
        return Ended(code, *capsys.readouterr())

    return run
