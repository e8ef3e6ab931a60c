# SPDX-License-Identifier: Apache-2.0
"""What a demo has shown: one run summed up, and several side by side."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from fed_sophia.output import Fields, size_text
from protocol.messages import RoundSummary, RunSummary

TARGETS = {"75": 0.75, "80": 0.80}
"""Accuracies to which rounds are counted: {per cent: fraction}."""


@dataclass(frozen=True)
class DemoSummary:
    """One run in numbers; the fields are those of the JSON summary."""

    algorithm: str
    task: str
    status: str
    rounds: int
    test_accuracy: float | None
    rounds_to_target: dict[str, int | None]
    seconds: float
    bytes_up: int
    bytes_down: int
    server_peak_rss_mb: float | None
    final_digest: str | None
    run: str

    def fields(self) -> Fields:
        return asdict(self)

    def sentence(self) -> str:
        accuracy = "unknown" if self.test_accuracy is None else f"{self.test_accuracy:.1%}"
        memory = "" if self.server_peak_rss_mb is None else f", server peak {self.server_peak_rss_mb:.0f} MB"
        return (
            f"{self.algorithm} on {self.task}: {accuracy} test accuracy after {self.rounds} rounds, "
            f"{self.seconds:.1f} s; {_to_targets(self)}; up {size_text(self.bytes_up)}, "
            f"down {size_text(self.bytes_down)}{memory}"
        )


def summarise(
    run: RunSummary, rounds: Sequence[RoundSummary], *, seconds: float, server_peak_rss_mb: float | None
) -> DemoSummary:
    """Sum a finished run up.

    Args:
        seconds: from the request that created the run to its end, waiting for workers included.
    """
    last = [round_.metrics.get("test_accuracy") for round_ in rounds if round_.version == run.version]
    return DemoSummary(
        algorithm=run.spec.algorithm,
        task=run.spec.task,
        status=run.status.value,
        rounds=run.version,
        test_accuracy=last[-1] if last else None,
        rounds_to_target={name: rounds_to(target, rounds) for name, target in TARGETS.items()},
        seconds=round(seconds, 2),
        bytes_up=sum(round_.bytes_up for round_ in rounds),
        bytes_down=sum(round_.bytes_down for round_ in rounds),
        server_peak_rss_mb=server_peak_rss_mb,
        final_digest=run.tensors.get("params"),
        run=run.run_id,
    )


def rounds_to(target: float, rounds: Sequence[RoundSummary]) -> int | None:
    """The first round whose version was measured at `target` or better; None if there is none."""
    reached = (round_.round for round_ in rounds if round_.metrics.get("test_accuracy", -1.0) >= target)
    return next(reached, None)


def comparison(summaries: Sequence[DemoSummary]) -> Table:
    """Several runs side by side, as a table for people."""
    title = f"Side by side: rounds to an accuracy, and the whole of {summaries[0].rounds} rounds"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True)
    table.add_column("algorithm", no_wrap=True)
    targets = (f"to {name} %" for name in TARGETS)
    for heading in (*targets, "accuracy", "seconds", "up", "down"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in summaries:
        reached = (str(each.rounds_to_target[name] or "–") for name in TARGETS)
        accuracy = "–" if each.test_accuracy is None else f"{each.test_accuracy:.1%}"
        seconds, up, down = f"{each.seconds:.1f}", size_text(each.bytes_up), size_text(each.bytes_down)
        table.add_row(each.algorithm, *reached, accuracy, seconds, up, down)
    return table


def _to_targets(summary: DemoSummary) -> str:
    return ", ".join(
        f"{name} % not reached" if number is None else f"{name} % in round {number}"
        for name, number in summary.rounds_to_target.items()
    )
