# SPDX-License-Identifier: Apache-2.0
"""How far a long transfer has come: a line that changes on a terminal, now and then an event for machines."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from fed_sophia.output import HumanOutput, Output, size_text

_EVENT_EVERY_S = 1.0


@dataclass(frozen=True)
class Progress:
    """Where a transfer stands."""

    doing: str
    tensors: int
    """Those that are begun."""
    of: int
    size_bytes: int
    """Of all that was done so far."""

    @property
    def text(self) -> str:
        return f"{self.doing}: tensor {self.tensors} of {self.of}, {size_text(self.size_bytes)}"


Report = Callable[[Progress], None]


@contextmanager
def progress_shown(output: Output, now_s: Callable[[], float] = time.monotonic) -> Iterator[Report]:
    """Something to be told of every chunk; into a pipe it says nothing to people."""
    if isinstance(output, HumanOutput):
        if not output.console.is_terminal:
            yield lambda progress: None
            return
        with output.console.status("") as status:
            yield lambda progress: status.update(progress.text)
        return
    next_s = now_s() + _EVENT_EVERY_S

    def report(progress: Progress) -> None:
        nonlocal next_s
        if now_s() >= next_s:
            next_s = now_s() + _EVENT_EVERY_S
            output.event("progress", progress.text, asdict(progress))

    yield report
