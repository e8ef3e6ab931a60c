# SPDX-License-Identifier: Apache-2.0
"""`run export` and `run import` as they are typed: what does not go together is refused in a sentence."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from fed_sophia.cli import run_command
from fed_sophia.output import Fields, HumanOutput
from fed_sophia.progress import Progress, progress_shown
from protocol.errors import FedSophiaError

NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens there


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("-o model.bin", "ends in .safetensors (a version's parameters) or in .tar (the whole run)"),
        ("-o run", "ends in .safetensors (a version's parameters) or in .tar (the whole run)"),
        ("-o run.tar.gz", "ends in .safetensors (a version's parameters) or in .tar (the whole run)"),
        ("-o run.tar --version 3", "--version is of .safetensors files; for an archive say --versions 3"),
        (
            "-o m.safetensors --versions 3",
            "--versions is of .tar files; .safetensors holds one: say --version",
        ),
        ("-o run.tar --versions 3,,5", "--versions '3,,5': expected last, all, none, or numbers like 3,5,8"),
        ("-o run.tar --versions newest", "expected last, all, none, or numbers like 3,5,8"),
        ("-o run.tar --versions -1", "expected last, all, none, or numbers like 3,5,8"),
        ("-o run.tar --versions=", "expected last, all, none, or numbers like 3,5,8"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_a_server_is_asked(
    arguments: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run_command(["run", "export", "r", *arguments.split(), "--server", NOBODY])
    stderr = capsys.readouterr().err
    assert (code, stderr.count("\n")) == (2, 1)
    assert says in stderr
    assert stderr.endswith("(invalid-usage)\n")


@pytest.mark.parametrize("name", ["absent.tar", "."])
def test_a_file_that_is_not_there_is_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key_file = tmp_path / "operator.key"
    key_file.write_text("key")
    source = str(tmp_path / name)
    code = run_command(["run", "import", source, "--server", NOBODY, "--operator-key-file", str(key_file)])
    assert code == 2
    assert f"{source}: expected an archive" in capsys.readouterr().err


class Told:
    """An output that remembers what it was told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Fields]] = []

    def event(self, event: str, text: str, fields: Fields) -> None:
        self.events.append((event, fields))

    def summary(self, text: str, fields: Fields) -> None:
        raise AssertionError(text)

    def error(self, error: FedSophiaError) -> None:
        raise AssertionError(error)


def test_machines_hear_of_progress_once_a_second() -> None:
    now_s, told = 0.0, Told()
    with progress_shown(told, lambda: now_s) as report:
        for tenth in range(1, 26):
            now_s = tenth / 10
            report(Progress("fetching", 1, 2, tenth))
    assert [(event, fields["size_bytes"]) for event, fields in told.events] == [
        ("progress", 10),
        ("progress", 20),
    ]
    assert told.events[0][1] == {"doing": "fetching", "tensors": 1, "of": 2, "size_bytes": 10}


@pytest.mark.parametrize("terminal", [True, False])
def test_people_see_progress_on_a_terminal_and_nothing_of_it_in_a_pipe(terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
    with progress_shown(HumanOutput(console)) as report:
        report(Progress("sending", 3, 7, 2_500_000))
        if terminal:
            console.print("")  # draws the line anew
    assert isinstance(console.file, io.StringIO)
    assert ("sending: tensor 3 of 7, 2.5 MB" in console.file.getvalue()) == terminal
