# SPDX-License-Identifier: Apache-2.0
"""Shows the rounds of a run as they happen: a live table, plain lines, or JSON lines.

All three are given the same thing, every round known so far, as often as anything changes.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from fed_sophia.output import Fields, HumanOutput, Output, size_text
from protocol.messages import RoundStatus, RoundSummary

_HEADINGS = ("round", "accuracy", "loss", "seconds", "up", "down", "updates", "note")
_TABLE_COLUMNS = 60
_UNMEASURED_AFTER = 2  # rounds that may end before a round without metrics is shown without them


class RoundsView(Protocol):
    """Something that shows rounds between `with` and its end."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, rounds: Sequence[RoundSummary], finished: bool = False) -> None: ...


class LiveTable:
    """A table that is redrawn in place; on a small terminal its last rows."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._rounds: Sequence[RoundSummary] = ()
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="visible")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.update(rounds_table(self._rounds, self._title), refresh=True)
        self._live.stop()

    def show(self, rounds: Sequence[RoundSummary], finished: bool = False) -> None:
        self._rounds = rounds
        self._live.update(
            rounds_table(rounds[-max(self._console.height - 8, 5) :], self._title), refresh=True
        )


class RoundLines:
    """One event a round, in order, once nothing more is to be expected of it; for pipes and machines."""

    def __init__(self, output: Output, run_id: str) -> None:
        self._output = output
        self._run_id = run_id
        self._last_shown = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, rounds: Sequence[RoundSummary], finished: bool = False) -> None:
        for index, round_ in enumerate(rounds):
            if round_.round <= self._last_shown:
                continue
            later_ended = sum(later.status.ended for later in rounds[index + 1 :])
            if not finished and not _complete(round_, later_ended):
                return
            self._last_shown = round_.round
            fields: Fields = {"run": self._run_id} | round_fields(round_)
            self._output.event("round", _sentence(round_), fields)


def view_for(output: Output, run_id: str, title: str) -> RoundsView:
    """A live table on a terminal that is wide enough, one line a round anywhere else."""
    if isinstance(output, HumanOutput):
        console = output.console
        if console.is_terminal and console.width >= _TABLE_COLUMNS:
            return LiveTable(console, title)
    return RoundLines(output, run_id)


def rounds_table(rounds: Sequence[RoundSummary], title: str) -> Table:
    """One row a round."""
    table = Table(title=title, title_justify="left")
    rows = [_cells(round_) for round_ in rounds]
    for heading in _HEADINGS if any(row[-1] for row in rows) else _HEADINGS[:-1]:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row[: len(table.columns)])
    return table


def round_fields(round_: RoundSummary) -> Fields:
    """A round for machines."""
    return {
        "round": round_.round,
        "status": round_.status.value,
        "reason": round_.reason,
        "version": round_.version,
        "test_accuracy": round_.metrics.get("test_accuracy"),
        "test_loss": round_.metrics.get("test_loss"),
        "train_loss": round_.metrics.get("train_loss"),
        "metrics": dict(round_.metrics),
        "seconds": seconds_of(round_),
        "bytes_up": round_.bytes_up,
        "bytes_down": round_.bytes_down,
        "invited": round_.invited,
        "admitted": round_.admitted,
        "declined": round_.declined,
        "lost": round_.lost,
    }


def seconds_of(round_: RoundSummary) -> float | None:
    """From opening to end; None while the round is open."""
    return None if round_.ended_ms is None else (round_.ended_ms - round_.opened_ms) / 1000


def loss_of(round_: RoundSummary) -> float | None:
    """The evaluator's loss, or the workers' own while there is none."""
    return round_.metrics.get("test_loss", round_.metrics.get("train_loss"))


def _complete(round_: RoundSummary, later_ended: int) -> bool:
    if round_.status is not RoundStatus.COMMITTED:
        return round_.status.ended
    return "test_accuracy" in round_.metrics or later_ended >= _UNMEASURED_AFTER


def _cells(round_: RoundSummary) -> tuple[str, ...]:
    accuracy, loss, seconds = round_.metrics.get("test_accuracy"), loss_of(round_), seconds_of(round_)
    return (
        str(round_.round),
        "" if accuracy is None else f"{accuracy:.1%}",
        "" if loss is None else f"{loss:.3f}",
        "" if seconds is None else f"{seconds:.1f}",
        size_text(round_.bytes_up),
        size_text(round_.bytes_down),
        f"{round_.admitted}" if round_.staleness else f"{round_.admitted}/{round_.invited}",
        _note(round_),
    )


def _note(round_: RoundSummary) -> str:
    """What there is to say of a round beside its numbers."""
    status = "" if round_.status is RoundStatus.COMMITTED else (round_.reason or round_.status.value)
    declined = f"{round_.declined} declined" if round_.declined else ""
    lost = f"{round_.lost} lost" if round_.lost else ""
    stale = f"{mean_staleness(round_):.1f} versions stale" if round_.staleness else ""
    return ", ".join(said for said in (status, declined, lost, stale) if said)


def mean_staleness(round_: RoundSummary) -> float:
    """Versions, over the updates of a round of an asynchronous run."""
    total = sum(staleness * count for staleness, count in enumerate(round_.staleness))
    return total / max(sum(round_.staleness), 1)


def _sentence(round_: RoundSummary) -> str:
    number, accuracy, loss, seconds, up, down, updates, note = _cells(round_)
    measured = f"accuracy {accuracy or '–'}  loss {loss or '–'}"
    return f"round {number}: {measured}  {seconds} s  up {up}  down {down}  updates {updates} {note}".rstrip()
