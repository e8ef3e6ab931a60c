# SPDX-License-Identifier: Apache-2.0
"""After a power cut at any moment, what was sealed is there, and all that is there is whole."""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from protocol.errors import FedSophiaError
from ps_service.storage.files import FileBlobs
from tests.system.power.lives import Law, Torn, Witness
from tests.system.power.unsynced import nothing, zeros

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the disk's model reads /proc")

FIRST, SECOND = b"first" * 50, b"second" * 50


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def no_sync(_descriptor: int) -> None:
    """Nothing fails any more once the power is back."""


@dataclass(frozen=True)
class Sealed:
    """The contents whose seal has returned and that nobody deleted since."""

    contents: frozenset[bytes] = frozenset()


def life(root: Path, witness: Witness[Sealed]) -> None:
    """A store is opened, two messages are sealed, one of them again, one after it was deleted."""
    with witness.doing("opening the store"):
        store = FileBlobs(root, witness.fsync)

    def seal(content: bytes, what: str) -> None:
        with witness.doing(f"sealing {what}"):
            staged = store.stage()
            try:
                staged.write(content[:7])
                staged.write(content[7:])
                staged.seal(digest_of(content))
                witness.promise(contents=witness.promised.contents | {content})
            finally:
                staged.discard()

    seal(FIRST, "the first")
    seal(SECOND, "the second")
    seal(FIRST, "the first again")
    witness.promise(contents=witness.promised.contents - {SECOND})
    store.delete(digest_of(SECOND))
    seal(SECOND, "what was deleted")
    with witness.doing("writing what is never sealed"):
        half = store.stage()
        half.write(b"half")
    half.discard()


def everything_sealed_is_whole(root: Path, sealed: Sealed) -> None:
    store = FileBlobs(root, no_sync)
    for content in sealed.contents:
        assert store.size(digest_of(content)) == len(content), "what was sealed is there"
    for path in (root / "blobs").glob("*/*"):
        assert digest_of(path.read_bytes()) == path.name, f"{path.name} is whole"
        assert path.parent.name == path.name[:2]
    assert list((root / "staging").iterdir()) == []


LAW = Law(life, Sealed(), everything_sealed_is_whole)


@pytest.mark.parametrize("torn", [zeros, nothing])
def test_a_power_cut_at_any_moment_leaves_everything_sealed_and_all_of_it_whole(torn: Torn) -> None:
    witness = LAW.witnessed(torn=torn)
    assert len(witness.promised.contents) == 2
    assert LAW.broken(witness) is None
    assert LAW.first_broken(LAW.written_back()) is None


def test_without_any_one_sync_a_power_cut_at_some_moment_loses_or_tears_a_message() -> None:
    # granted: its name is on the disk already, for the same bytes
    granted = f"while sealing the first again, sync 1 of the directory blobs/{digest_of(FIRST)[:2]}"
    assert LAW.unnoticed([granted]) == []


def test_a_power_cut_after_a_kill_and_a_restart_loses_nothing_either() -> None:
    assert LAW.first_broken(LAW.killed()) is None


def test_a_store_whose_syncs_fail_does_not_pass_its_check(tmp_path: Path) -> None:
    """Some disks say that they are full, or broken, only when they are asked to keep what was written."""
    broken: list[OSError] = []

    def fsync(_descriptor: int) -> None:
        if broken:
            raise broken[0]

    store = FileBlobs(tmp_path, fsync)
    store.check()
    broken.append(OSError(5, "Input/output error"))
    with pytest.raises((OSError, FedSophiaError)):
        store.check()
