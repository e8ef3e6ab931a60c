# SPDX-License-Identifier: Apache-2.0
"""A worker that loses its key cannot prove any more who it is: no power cut takes it away."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system.power.lives import Law, Torn, Witness
from tests.system.power.unsynced import nothing, zeros
from tests.system.power.worker_life import no_sync
from worker.identity import Identity, identity_in, save_identity

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the disk's model reads /proc")

SERVER = "https://fed.example"


@dataclass(frozen=True)
class Saved:
    """The identity that was given out or saved last, and the one that is being saved."""

    identity: str | None = None
    next: str | None = None


def life(root: Path, witness: Witness[Saved]) -> None:
    """A worker makes its key in a directory that is not there yet, enrols, and takes another key."""
    state_dir = root / "workers" / "mine"
    with witness.doing("making the key"):
        made = identity_in(state_dir, SERVER, witness.fsync)
        witness.promise(identity=made.model_dump_json())
    with witness.doing("noting the worker's id"):
        enrolled = made.model_copy(update={"worker_id": "w-1"})
        witness.promise(next=enrolled.model_dump_json())
        save_identity(state_dir, enrolled, witness.fsync)
        witness.promise(identity=enrolled.model_dump_json())
    with witness.doing("keeping the next key"):
        both = enrolled.model_copy(update={"next_private_key": "n" * 43})
        witness.promise(next=both.model_dump_json())
        save_identity(state_dir, both, witness.fsync)
        witness.promise(identity=both.model_dump_json())
    with witness.doing("letting go of the old key"):
        promoted = both.model_copy(update={"private_key": "n" * 43, "next_private_key": None})
        witness.promise(next=promoted.model_dump_json())
        save_identity(state_dir, promoted, witness.fsync)
        witness.promise(identity=promoted.model_dump_json())


def the_key_is_there(root: Path, saved: Saved) -> None:
    found = identity_in(root / "workers" / "mine", SERVER, no_sync)
    if saved.identity is not None:
        assert found in [Identity.model_validate_json(may) for may in (saved.identity, saved.next) if may]


LAW = Law(life, Saved(), the_key_is_there)


@pytest.mark.parametrize("torn", [zeros, nothing])
def test_a_power_cut_at_any_moment_leaves_the_old_identity_or_the_new_one(torn: Torn) -> None:
    assert LAW.broken(LAW.witnessed(torn=torn)) is None
    assert LAW.first_broken(LAW.written_back()) is None


def test_without_any_one_sync_a_power_cut_at_some_moment_takes_the_identity_away() -> None:
    assert LAW.unnoticed() == []
