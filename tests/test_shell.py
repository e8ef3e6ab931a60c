# SPDX-License-Identifier: Apache-2.0
"""What is written for a shell is read by shellcheck."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (".ci", "benchmarks", "deploy", "docs", "examples", "fed_sophia", "ps_service", "tests", "worker")


def scripts() -> Iterator[Path]:
    """The files that say on their first line that a shell reads them."""
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*")):
            if file.is_file():
                with file.open("rb") as opened:
                    first = opened.readline(100)
                if first.startswith(b"#!") and first.rstrip().endswith(b"sh"):
                    yield file


@pytest.fixture
def shellcheck(require_part: Callable[[bool, str], None]) -> Callable[[Path], str]:
    """Gives what it says of a file; nothing, if there is nothing to say."""
    program = shutil.which("shellcheck")
    require_part(program is not None, "shellcheck")

    def said_of(file: Path) -> str:
        command = [str(program), "--norc", "--external-sources", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout + done.stderr

    return said_of


def test_shellcheck_finds_nothing_to_say_of_any_script(shellcheck: Callable[[Path], str]) -> None:
    found = list(scripts())
    assert ROOT / ".ci" / "run" in found
    assert {str(file): said for file in found if (said := shellcheck(file))} == {}


def test_shellcheck_finds_what_is_wrong(shellcheck: Callable[[Path], str], tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\nrm -rf $1/\n")
    assert "SC2086" in shellcheck(script)
