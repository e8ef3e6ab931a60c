# SPDX-License-Identifier: Apache-2.0
"""Local state that was saved is there after a power cut, without help from an outbox beside it."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system.power.lives import Law, Torn, Witness
from tests.system.power.unsynced import nothing, zeros
from tests.system.power.worker_life import RUN, equal, kept_after, no_sync
from worker.local_state import LocalState

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the disk's model reads /proc")


@dataclass(frozen=True)
class Saved:
    """How often `save` has been called, and has returned."""

    begun: int = 0
    returned: int = 0


def life(root: Path, witness: Witness[Saved]) -> None:
    with witness.doing("opening"):
        state = LocalState(root / "kept" / "here", witness.fsync)
    for number in (1, 2):
        with witness.doing(f"saving for the {number}. time"):
            kept = kept_after(number)
            assert kept is not None
            witness.promise(begun=number)
            state.save(RUN, number, kept)
            witness.promise(returned=number)


def it_is_the_old_or_the_new(root: Path, saved: Saved) -> None:
    found = LocalState(root / "kept" / "here", no_sync).load(RUN)
    assert any(equal(found, kept_after(number)) for number in (saved.returned, saved.begun))


LAW = Law(life, Saved(), it_is_the_old_or_the_new)


@pytest.mark.parametrize("torn", [zeros, nothing])
def test_a_power_cut_at_any_moment_leaves_the_old_state_or_the_new_one(torn: Torn) -> None:
    assert LAW.broken(LAW.witnessed(torn=torn)) is None
    assert LAW.first_broken(LAW.written_back()) is None


def test_without_any_one_sync_a_power_cut_at_some_moment_loses_or_tears_the_state() -> None:
    assert LAW.unnoticed() == []
