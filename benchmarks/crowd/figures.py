# SPDX-License-Identifier: Apache-2.0
"""What is measured of a crowd: of the server's process, and of the time from a round to its workers."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from protocol.messages import RoundSummary


@dataclass(frozen=True)
class Usage:
    """What a process has used of the machine so far."""

    cpu_s: float
    """Of one core, in user and system mode."""
    rss_bytes: int


def usage_of(pid: int) -> Usage:
    """From /proc: Linux only."""
    # the command's name, in parentheses, may hold anything: count from behind it
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return Usage(ticks / os.sysconf("SC_CLK_TCK"), int(fields[21]) * os.sysconf("SC_PAGE_SIZE"))


@dataclass(frozen=True)
class Latencies:
    """Seconds from the opening of a round to the arrival of its assignments."""

    count: int
    median_s: float
    p99_s: float
    most_s: float
    most_of_round_s: tuple[float, ...]
    """The slowest of each round."""


def latencies(
    run_id: str, rounds: Sequence[RoundSummary], assigned: Sequence[tuple[str, int, float]]
) -> Latencies:
    """Of all assignments of a run that have come."""
    opened_ms = {round_.round: round_.opened_ms for round_ in rounds}
    of_run = [
        (number, (at_ms - opened_ms[number]) / 1000) for run, number, at_ms in assigned if run == run_id
    ]
    took_s = sorted(took for _, took in of_run)
    slowest = tuple(max(took for number, took in of_run if number == each) for each in sorted(opened_ms))

    def quantile(share: float) -> float:
        return took_s[min(len(took_s) - 1, int(share * len(took_s)))]

    return Latencies(len(took_s), quantile(0.5), quantile(0.99), took_s[-1], slowest)


def table(rows: Mapping[str, str]) -> str:
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())
