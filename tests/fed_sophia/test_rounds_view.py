# SPDX-License-Identifier: Apache-2.0
"""A round is told once, in order, and with its metrics where they come in time."""

import io

import pytest
from rich.console import Console

from fed_sophia.commands.create_run import metrics_wait_s
from fed_sophia.demo_summary import rounds_to
from fed_sophia.output import Fields, HumanOutput, size_text
from fed_sophia.rounds_view import LiveTable, RoundLines, round_fields, rounds_table, view_for
from protocol.errors import FedSophiaError
from protocol.messages import RoundStatus, RoundSummary


class Told:
    """An output that remembers the rounds it was told of."""

    def __init__(self) -> None:
        self.rounds: list[tuple[object, object]] = []

    def event(self, event: str, text: str, fields: Fields) -> None:
        self.rounds.append((fields["round"], fields["test_accuracy"]))

    def summary(self, text: str, fields: Fields) -> None:
        raise AssertionError(text)

    def error(self, error: FedSophiaError) -> None:
        raise AssertionError(error)


def a_round(
    number: int,
    accuracy: float | None = None,
    status: RoundStatus = RoundStatus.COMMITTED,
    **changes: object,
) -> RoundSummary:
    round_ = RoundSummary(
        round=number,
        status=status,
        base_version=number - 1,
        version=number if status is RoundStatus.COMMITTED else None,
        invited=2,
        admitted=2,
        declined=0,
        opened_ms=0,
        deadline_ms=1000,
        ended_ms=500 if status.ended else None,
        bytes_up=10,
        bytes_down=10,
        metrics={} if accuracy is None else {"test_accuracy": accuracy},
    )
    return round_.model_copy(update=changes)


def test_a_round_waits_for_its_metrics_and_is_told_once() -> None:
    told = Told()
    lines = RoundLines(told, "r")
    lines.show([a_round(1)])
    assert told.rounds == []
    lines.show([a_round(1, 0.5), a_round(2)])
    lines.show([a_round(1, 0.5), a_round(2, 0.6)])
    assert told.rounds == [(1, 0.5), (2, 0.6)]


def test_a_round_that_nobody_measures_is_told_when_two_more_have_ended() -> None:
    told = Told()
    lines = RoundLines(told, "r")
    lines.show([a_round(1), a_round(2), a_round(3)])
    assert told.rounds == [(1, None)]


def test_everything_is_told_at_the_end() -> None:
    told = Told()
    RoundLines(told, "r").show([a_round(1), a_round(2)], finished=True)
    assert told.rounds == [(1, None), (2, None)]


def test_an_open_round_holds_back_those_after_it() -> None:
    told = Told()
    lines = RoundLines(told, "r")
    lines.show([a_round(1, status=RoundStatus.COLLECTING), a_round(2, 0.5)])
    assert told.rounds == []
    lines.show([a_round(1, status=RoundStatus.ABANDONED), a_round(2, 0.5)])
    assert told.rounds == [(1, None), (2, 0.5)]


@pytest.mark.parametrize(
    ("terminal", "columns", "view"),
    [(True, 60, LiveTable), (True, 59, RoundLines), (False, 200, RoundLines)],
)
def test_a_table_is_for_a_terminal_that_is_wide_enough(terminal: bool, columns: int, view: type) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=columns)
    assert isinstance(view_for(HumanOutput(console), "r", "title"), view)


@pytest.mark.parametrize(
    ("round_", "note"),
    [
        (a_round(1), ""),
        (a_round(1, lost=2), "2 lost"),
        (a_round(1, lost=2, declined=1), "1 declined, 2 lost"),
        (a_round(1, status=RoundStatus.COLLECTING, lost=1), "collecting, 1 lost"),
        (
            a_round(1, status=RoundStatus.ABANDONED, reason="the run ended", declined=1),
            "the run ended, 1 declined",
        ),
    ],
)
def test_a_round_s_note_says_who_was_lost_and_who_declined(round_: RoundSummary, note: str) -> None:
    columns = {str(column.header): list(column.cells) for column in rounds_table([round_], "").columns}
    assert columns.get("note", [""]) == [note]
    assert (round_fields(round_)["declined"], round_fields(round_)["lost"]) == (round_.declined, round_.lost)


def test_machines_are_told_every_metric_of_a_round() -> None:
    metrics = {"step_ms": 12.5, "energy_joules": 300.0, "train_loss": 0.5}
    fields = round_fields(a_round(1, metrics=metrics))
    assert (fields["metrics"], fields["train_loss"]) == (metrics, 0.5)


def test_metrics_are_waited_for_unless_nobody_measures() -> None:
    assert metrics_wait_s([a_round(1)]) > 0
    assert metrics_wait_s([a_round(1, 0.5), a_round(2), a_round(3), a_round(4)]) > 0
    assert metrics_wait_s([a_round(1), a_round(2), a_round(3)]) == 0


def test_rounds_to_a_target_is_the_first_that_reached_it() -> None:
    rounds = [a_round(1, 0.7), a_round(2), a_round(3, 0.76), a_round(4, 0.7), a_round(5, 0.8)]
    assert rounds_to(0.75, rounds) == 3
    assert rounds_to(0.8, rounds) == 5
    assert rounds_to(0.9, rounds) is None


def test_sizes_are_in_powers_of_ten() -> None:
    assert [size_text(n) for n in (0, 999, 1000, 1_250_000, 3e12)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "1.2 MB",
        "3000.0 GB",
    ]
