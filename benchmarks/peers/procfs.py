# SPDX-License-Identifier: Apache-2.0
"""What Linux tells of the processes that are ours, found by a mark in their environment.

A peer's processes start others, and some outlive who started them; every one inherits the mark.
"""

import os
from collections.abc import Sequence
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


def all_processes() -> list[Process]:
    """Every process of the machine; who ends meanwhile is left out."""
    ticks_per_s, page_bytes = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    found = []
    for place in PROC.iterdir():
        if place.name.isdecimal():
            with suppress(OSError):
                stat = (place / "stat").read_text(encoding="utf-8", errors="replace")
                found.append(parse_stat(stat, ticks_per_s, page_bytes))
    return found


class MarkedProcesses:
    """Finds the processes whose mark is this one."""

    def __init__(self, mark: str) -> None:
        self._line = f"{MARK}={mark}".encode()
        self._known: set[tuple[int, int]] = set()
        """Found before: a zombie has no environment any more."""
        self._foreign: set[tuple[int, int]] = set()
        """Somebody else's: no process is given the mark later."""

    def now(self, everybody: Sequence[Process] | None = None) -> list[Process]:
        """Those that exist, zombies included; `everybody` is what `all_processes` has just given."""
        ours, foreign = [], set()
        for process in all_processes() if everybody is None else everybody:
            marked = process.name not in self._foreign and self._is_marked(process)
            if process.name in self._known or marked:
                ours.append(process)
            elif marked is False:
                foreign.add(process.name)
        self._known, self._foreign = {process.name for process in ours}, foreign
        return ours

    def _is_marked(self, process: Process) -> bool | None:
        """None where it cannot be told: it has ended, or is just becoming another program."""
        try:
            environment = (PROC / str(process.pid) / "environ").read_bytes()
        except OSError:
            return None
        return self._line in environment.split(b"\0") if environment else None
