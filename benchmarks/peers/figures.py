# SPDX-License-Identifier: Apache-2.0
"""What a peer's rounds have cost, from what its server has noted and what was seen of its processes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.metering import Sample, used
from protocol.errors import Internal

MOST_ERROR = 1e-3
"""Of an element of the aggregate: float32 sums of small numbers stay far below."""


@dataclass(frozen=True)
class Round:
    """A round as the server has seen it; times by the machine's monotonic clock."""

    began_s: float
    ended_s: float
    replies: int


@dataclass(frozen=True)
class Report:
    """What the peer's server has found."""

    version: str
    rounds: tuple[Round, ...]
    largest_error: float


@dataclass(frozen=True)
class Figures:
    """What was measured."""

    round_seconds_each: list[float]
    """The first included; all that follows is of the others, where there are others."""
    lo_bytes_per_round: int | None
    """None where the network was not ours alone."""
    server_cpu_s_per_round: float
    workers_cpu_s_per_round: float
    server_peak_rss_bytes: int
    """Most that its processes have held together, from their start to the end of the last round."""
    start_seconds: float
    """From the first process, provisioning included, to the first round."""
    aggregate_max_error: float
    version: str


def read_report(path: Path, workers: int, rounds: int) -> Report:
    """What the server has written, if it is what was asked for.

    Raises:
        Internal: the server failed, a reply is missing, or the aggregate is wrong.
    """
    fields = json.loads(path.read_text(encoding="utf-8"))
    if "error" in fields:
        raise Internal(f"its server failed: {fields['error']}")
    report = Report(
        fields["version"], tuple(Round(*each) for each in fields["rounds"]), fields["largest_error"]
    )
    replies = [each.replies for each in report.rounds]
    if fields["failures"] or replies != [workers] * rounds:
        raise Internal(
            f"{workers} replies in each of {rounds} rounds were expected, not {replies}: {fields['failures']}"
        )
    if not report.largest_error <= MOST_ERROR:  # NaN is refused too
        raise Internal(f"its aggregate is wrong by {report.largest_error:g}")
    return report


def figures(report: Report, samples: Sequence[Sample], began_s: float, network_is_private: bool) -> Figures:
    """Per round: over all rounds but the first, in which connections are made and caches are filled."""
    counted = report.rounds[1:] or report.rounds
    spent, number = used(samples, counted[0].began_s, counted[-1].ended_s), len(counted)
    ended_s = report.rounds[-1].ended_s
    return Figures(
        round_seconds_each=[each.ended_s - each.began_s for each in report.rounds],
        lo_bytes_per_round=round(spent.lo_bytes / number) if network_is_private else None,
        server_cpu_s_per_round=spent.server_cpu_s / number,
        workers_cpu_s_per_round=spent.workers_cpu_s / number,
        # what comes later is the check of the aggregate, and no part of a round
        server_peak_rss_bytes=max(each.server_rss_bytes for each in samples if each.at_s <= ended_s),
        start_seconds=report.rounds[0].began_s - began_s,
        aggregate_max_error=report.largest_error,
        version=report.version,
    )
