# SPDX-License-Identifier: Apache-2.0
"""Files of results: one JSON line for each trial that has ended, only ever added to.

A process that is killed while it writes leaves a line without an end. Readers pass over it, and the next
result that is added takes its place.
"""

import fcntl
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from fed_sophia.experiments.results import SCHEMA_VERSION, Result
from protocol.errors import InvalidUsage


@dataclass(frozen=True)
class Stored:
    """What a folder of results holds."""

    results: tuple[Result, ...] = ()
    torn: tuple[Path, ...] = ()
    """Files whose last line has no end; it is not among the results."""

    def by_engine(self, engine: str) -> dict[str, Result]:
        """{key: result} of what this engine trained; a later line takes the place of an earlier one."""
        return {result.key: result for result in self.results if result.engine == engine}

    @property
    def engines(self) -> tuple[str, ...]:
        return tuple(sorted({result.engine for result in self.results}))


def load_results(folder: Path) -> Stored:
    """Read every `*.jsonl` of a folder; one that is not there holds nothing.

    Raises:
        InvalidUsage: a line is no result, or of a schema that is not known; the message names file and line.
    """
    results: list[Result] = []
    torn: list[Path] = []
    for path in sorted(folder.glob("*.jsonl")):
        *lines, rest = path.read_bytes().split(b"\n")
        results.extend(_results(path, lines))
        if rest:
            torn.append(path)
    return Stored(tuple(results), tuple(torn))


def append_result(path: Path, result: Result) -> None:
    """Add a line, whole and on the disk when this returns; what a killed process left half is cut off first.

    Raises:
        OSError: it cannot be written, or not all of it, as on a full disk; what there is of it is a line
            without an end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = (result.model_dump_json() + "\n").encode()
    with path.open("a+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # another sweep may be writing; closing the file lets go
        file.truncate(_end_of_last_whole_line(path.read_bytes()))
        left = memoryview(line)
        while left:  # one write may take a part of it, and says so only by its count
            left = left[file.write(left) :]
        os.fsync(file.fileno())


def _end_of_last_whole_line(content: bytes) -> int:
    return content.rfind(b"\n") + 1


def _results(path: Path, lines: Iterable[bytes]) -> Iterable[Result]:
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        try:
            version = json.loads(line)["schema_version"]
        except (ValueError, KeyError, TypeError):
            raise InvalidUsage(f"{where}: expected the result of a trial as JSON") from None
        if version != SCHEMA_VERSION:
            raise InvalidUsage(f"{where}: schema_version {version!r}: expected {SCHEMA_VERSION}")
        try:
            yield Result.model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            raise InvalidUsage(f"{where}: {field}: {first['msg']}") from None
