# SPDX-License-Identifier: Apache-2.0
"""What Linux tells of the processes that are ours, found by a mark in their environment.

A peer's processes start others, and some outlive who started them; every one inherits the mark.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MARK = "FED_SOPHIA_PEER_MARK"
PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A process at one moment; it may be a zombie."""

    pid: int
    state: str
    """Z: it has ended, and nobody has waited for it yet."""
    began_ticks: int
    """Since the machine's start: with the pid, it names a process for ever."""
    parent: int
    cpu_s: float
    """Its own and that of the ended children that it has waited for."""
    rss_bytes: int

    @property
    def name(self) -> tuple[int, int]:
        return self.pid, self.began_ticks


def parse_stat(text: str, ticks_per_s: int, page_bytes: int) -> Process:
    """A process from `/proc/PID/stat`. Source: proc(5)."""
    pid = int(text.split(" ", 1)[0])
    # the command's name, in parentheses, may hold anything: count from behind it
    fields = text.rpartition(")")[2].split()
    ticks = sum(int(field) for field in fields[11:15])
    return Process(
        pid=pid,
        state=fields[0],
        began_ticks=int(fields[19]),
        parent=int(fields[1]),
        cpu_s=ticks / ticks_per_s,
        rss_bytes=int(fields[21]) * page_bytes,
    )


class MarkedProcesses:
    """Finds the processes whose mark is this one."""

    def __init__(self, mark: str) -> None:
        self._line = f"{MARK}={mark}".encode()
        self._known: set[tuple[int, int]] = set()
        """Found before: a zombie has no environment any more."""
        self._ticks_per_s = os.sysconf("SC_CLK_TCK")
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")

    def now(self) -> list[Process]:
        """Those that exist, zombies included."""
        found = [
            process for process in self._all() if process.name in self._known or self._is_marked(process)
        ]
        self._known = {process.name for process in found}
        return found

    def _all(self) -> Iterator[Process]:
        for place in PROC.iterdir():
            if place.name.isdecimal():
                with suppress(OSError):
                    stat = (place / "stat").read_text(encoding="utf-8", errors="replace")
                    yield parse_stat(stat, self._ticks_per_s, self._page_bytes)

    def _is_marked(self, process: Process) -> bool:
        try:
            return self._line in (PROC / str(process.pid) / "environ").read_bytes().split(b"\0")
        except OSError:  # it has just ended, or is somebody else's
            return False
