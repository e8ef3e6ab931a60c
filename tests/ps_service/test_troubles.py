# SPDX-License-Identifier: Apache-2.0
"""What fails again and again is told once, and its end too."""

import logging

import pytest

from protocol.errors import StorageNotWritable
from ps_service.troubles import REMIND_S, Troubles

log = logging.getLogger("fed_sophia.test")
FULL = StorageNotWritable("the server's disk is full")
READ_ONLY = StorageNotWritable("the server's disk is read-only")


class Watch:
    """Shows the time that it was set to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def troubles(watch: Watch) -> Troubles:
    return Troubles(log, watch)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == log.name]


def test_a_failure_that_lasts_is_told_when_it_begins_and_then_rarely(
    troubles: Troubles, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    for watch.now_s in range(round(2 * REMIND_S)):
        troubles.failed("rounds", FULL)
    assert told(caplog) == ["rounds: the server's disk is full; it is tried again"] * 2
    assert "Traceback" not in caplog.text


def test_another_failure_is_told_at_once(troubles: Troubles, caplog: pytest.LogCaptureFixture) -> None:
    for error in (FULL, READ_ONLY, READ_ONLY, FULL):
        troubles.failed("rounds", error)
    troubles.failed("presence", FULL)
    assert [line.partition(";")[0] for line in told(caplog)] == [
        "rounds: the server's disk is full",
        "rounds: the server's disk is read-only",
        "rounds: the server's disk is full",
        "presence: the server's disk is full",
    ]


def test_the_end_of_a_failure_is_told_and_work_that_never_failed_is_not_spoken_of(
    troubles: Troubles, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        troubles.worked("rounds")
    troubles.failed("rounds", FULL)
    for _ in range(2):
        troubles.worked("rounds")
    troubles.failed("rounds", FULL)
    assert [line.partition(":")[2] for line in told(caplog)] == [
        " the server's disk is full; it is tried again",
        " works again",
        " the server's disk is full; it is tried again",
    ]


def test_only_a_failure_that_nobody_foresaw_shows_where_it_arose(
    troubles: Troubles, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):  # the words of such an error may differ each time
        troubles.failed("rounds", KeyError(f"swordfish {number}"))
    assert told(caplog) == ["rounds: KeyError; it is tried again"]
    assert "swordfish 0" in caplog.text
