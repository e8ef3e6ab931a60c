# SPDX-License-Identifier: Apache-2.0
"""What a worker keeps is there, whole and consistent, after a power cut at any moment."""

import sys

import pytest

from tests.system.power.lives import Law, Sync, Torn
from tests.system.power.unsynced import nothing, zeros
from tests.system.power.worker_life import COUNTED, REFUSED, Assured, life, nothing_is_lost

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the disk's model reads /proc")

LAW = Law(life, Assured(), nothing_is_lost)

COVERED_BY_A_LATER_ONE = [
    "while opening the outbox, sync 1 of the directory .",
    *(
        f"while putting a-{number}, sync 1 of the directory outbox{below}"
        for number in (*COUNTED, REFUSED)
        for below in ("", f"/.new-a-{number}", f"/.new-a-{number}/kept")
    ),
]
"""Another sync of the same directory follows before anything relies on it."""


@pytest.mark.parametrize("torn", [zeros, nothing])
def test_a_power_cut_at_any_moment_loses_no_update_and_no_local_state(torn: Torn) -> None:
    assert LAW.broken(LAW.witnessed(torn=torn)) is None


def test_nor_does_one_after_the_system_wrote_names_back_unasked() -> None:
    assert LAW.first_broken(LAW.written_back()) is None


def test_nor_does_one_after_a_kill_and_a_restart() -> None:
    assert LAW.first_broken(LAW.killed()) is None


def test_without_any_one_sync_a_power_cut_at_some_moment_loses_or_tears_something() -> None:
    assert LAW.unnoticed(COVERED_BY_A_LATER_ONE) == []


@pytest.mark.parametrize(
    "sync",
    [
        Sync("opening after the kill", "directory", "."),
        Sync("opening the outbox after the kill", "directory", "outbox"),
        Sync("settling a-1 after the kill", "directory", "local_state"),
    ],
    ids=str,
)
def test_a_new_process_relies_on_no_name_that_the_one_before_had_no_time_to_sync(sync: Sync) -> None:
    """Without any of these syncs, a kill and then a power cut lose or tear something."""
    assert LAW.first_broken(LAW.killed(ignored=sync)) is not None
