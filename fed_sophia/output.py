# SPDX-License-Identifier: Apache-2.0
"""What a command says: sentences for people, or one JSON object a line for machines.

Every command reports through an `Output` and ends with one `summary`. In JSON the summary is the last
line of standard output and has `"summary": true`; a command that failed has `error` in it.
"""

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from rich.console import Console
from rich.table import Table

from protocol.errors import FedSophiaError

Fields = dict[str, object]


class Output(Protocol):
    """Where a command says what it does; `text` is for people, `fields` for machines."""

    def event(self, event: str, text: str, fields: Fields) -> None: ...

    def rows(self, event: str, table: Callable[[], Table], rows: Sequence[Fields]) -> None:
        """Show what a list holds: a table for people, a line each for machines; nothing if it is empty."""

    def summary(self, text: str, fields: Fields) -> None: ...

    def error(self, error: FedSophiaError) -> None:
        """Say why the command failed; never raises, for nobody is left to hear of it."""


class HumanOutput:
    """Plain sentences; what has no text is not said."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)

    def event(self, event: str, text: str, fields: Fields) -> None:
        if text:
            self.console.print(printable(text), markup=False)

    def rows(self, event: str, table: Callable[[], Table], rows: Sequence[Fields]) -> None:
        if rows:
            self.console.print(table())

    def summary(self, text: str, fields: Fields) -> None:
        if text:
            self.console.print(printable(text), markup=False)

    def error(self, error: FedSophiaError) -> None:
        _say_on_stderr(error)


class JsonOutput:
    """JSON lines on standard output, each flushed at once."""

    def event(self, event: str, text: str, fields: Fields) -> None:
        self._line({"event": event} | fields)

    def rows(self, event: str, table: Callable[[], Table], rows: Sequence[Fields]) -> None:
        for fields in rows:
            self.event(event, "", fields)

    def summary(self, text: str, fields: Fields) -> None:
        self._line({"summary": True} | fields)

    def error(self, error: FedSophiaError) -> None:
        detail = one_line(error.detail)
        try:
            self._line({"summary": True, "error": error.code, "detail": detail, "retryable": error.retryable})
        except OSError:
            _say_on_stderr(error)

    def _line(self, fields: Fields) -> None:
        sys.stdout.write(json.dumps(fields, ensure_ascii=False, allow_nan=False, default=str) + "\n")
        sys.stdout.flush()


def output_for(json_lines: bool) -> Output:
    """The output that `--json` asks for, or the one for people."""
    return JsonOutput() if json_lines else HumanOutput()


def _say_on_stderr(error: FedSophiaError) -> None:
    with suppress(OSError):
        sys.stderr.write(f"error: {one_line(error.detail)} ({error.code})\n")
        sys.stderr.flush()


def one_line(text: str) -> str:
    """`text` with every run of white space as one blank, fit for a terminal."""
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """`text` without what moves a terminal: others may have written it. Lines stay lines."""
    return "".join(
        char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def size_text(size_bytes: float) -> str:
    """A number of bytes for people, in powers of ten: `1.3 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000 or unit == "GB":
            break
        size_bytes /= 1000
    return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
