# SPDX-License-Identifier: Apache-2.0
"""An update outlives a crash until its receipt; killed between any two steps, the outbox is right."""

import errno
import itertools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from protocol.codec import NamedTensor, digest_of, encode_message
from protocol.errors import LocalStateCorrupt, StateNotWritable, UnexpectedAnswer
from protocol.messages import UpdateHeader
from worker.local_state import Kept, LocalState
from worker.outbox import Entry, Outbox


class Killed(Exception):
    """The process ended here."""


class Fsync:
    """Counts, and ends the process when called for the `killed_at`-th time, from 0."""

    def __init__(self, killed_at: int | None = None) -> None:
        self.calls = itertools.count()
        self.killed_at = killed_at
        self.num_calls = 0

    def __call__(self, descriptor: int) -> None:
        self.num_calls += 1
        if next(self.calls) == self.killed_at:
            raise Killed


MESSAGE = encode_message("update", [NamedTensor("delta", "w", np.arange(1000, dtype=np.float32))])
MESSAGE_BYTES = b"".join(MESSAGE)
OLD, NEW = (Kept(step, {"momentum": {"w": np.full(3, step, np.float32)}}) for step in (10, 20))


def entry_for(assignment_id: str = "a-1", round_: int = 2) -> Entry:
    header = UpdateHeader(
        digest=digest_of(MESSAGE),
        size_bytes=len(MESSAGE_BYTES),
        bundles=("delta",),
        encodings={"delta": "f32"},
        num_examples=5,
        local_steps=3,
        metrics={"train_loss": 0.5},
    )
    return Entry(assignment_id=assignment_id, run_id="run-1", round=round_, header=header)


def local_state(tmp_path: Path) -> LocalState:
    return LocalState(tmp_path / "local_state")


def kept_step(tmp_path: Path) -> int | None:
    kept = local_state(tmp_path).load("run-1")
    return None if kept is None else kept.step


def outbox(tmp_path: Path, fsync: Fsync | None = None) -> Outbox:
    """The outbox as a new process opens it."""
    made = fsync or Fsync()
    return Outbox(tmp_path / "outbox", LocalState(tmp_path / "local_state", made), made)


def test_what_was_put_is_found_by_the_next_process_byte_for_byte(tmp_path: Path):
    outbox(tmp_path).put(entry_for(), MESSAGE, NEW)

    [found] = outbox(tmp_path).pending()
    assert found.entry == entry_for()
    assert found.message_path.read_bytes() == MESSAGE_BYTES


def test_the_new_local_state_waits_for_the_receipt(tmp_path: Path):
    local_state(tmp_path).save("run-1", 1, OLD)
    outbox(tmp_path).put(entry_for(), MESSAGE, NEW)
    assert kept_step(tmp_path) == OLD.step

    outbox(tmp_path).settle("a-1")

    assert kept_step(tmp_path) == NEW.step
    assert outbox(tmp_path).pending() == []


def test_a_dropped_update_leaves_the_local_state_as_it_was(tmp_path: Path):
    local_state(tmp_path).save("run-1", 1, OLD)
    outbox(tmp_path).put(entry_for(), MESSAGE, NEW)

    outbox(tmp_path).drop("a-1")

    assert kept_step(tmp_path) == OLD.step
    assert outbox(tmp_path).pending() == []
    assert list((tmp_path / "outbox").iterdir()) == []


def test_an_optimizer_that_keeps_nothing_settles_without_local_state(tmp_path: Path):
    outbox(tmp_path).put(entry_for(), MESSAGE, None)
    outbox(tmp_path).settle("a-1")
    assert local_state(tmp_path).load("run-1") is None


def test_updates_are_pending_in_the_order_of_their_rounds(tmp_path: Path):
    for name, round_ in (("b", 3), ("a", 12), ("c", 2)):
        outbox(tmp_path).put(entry_for(name, round_), MESSAGE, None)
    assert [pending.entry.round for pending in outbox(tmp_path).pending()] == [2, 3, 12]


def fsyncs_of_a_put(tmp_path: Path) -> int:
    fsync = Fsync()
    box = outbox(tmp_path / "counted", fsync)
    opened = fsync.num_calls
    box.put(entry_for(), MESSAGE, NEW)
    return fsync.num_calls - opened


def killed_while_putting(tmp_path: Path, step: int) -> None:
    fsync = Fsync()
    box = outbox(tmp_path, fsync)
    fsync.killed_at = fsync.num_calls + step
    with pytest.raises(Killed):
        box.put(entry_for(), MESSAGE, NEW)


def test_killed_while_putting_there_is_no_update_or_a_whole_one(tmp_path: Path):
    steps = fsyncs_of_a_put(tmp_path)
    whole = []
    for step in range(steps):
        place = tmp_path / str(step)
        killed_while_putting(place, step)

        found = outbox(place).pending()
        assert all(pending.message_path.read_bytes() == MESSAGE_BYTES for pending in found)
        assert {path.name for path in (place / "outbox").iterdir()} <= {"a-1"}, "leftovers are swept"
        whole.append(len(found))
    assert whole == [0] * (steps - 1) + [1], "only the last sync comes after the update has its name"


def test_an_update_whose_putting_was_cut_off_can_be_put_again(tmp_path: Path):
    for step in range(fsyncs_of_a_put(tmp_path) - 1):
        killed_while_putting(tmp_path / "again", step)
    outbox(tmp_path / "again").put(entry_for(), MESSAGE, NEW)
    assert len(outbox(tmp_path / "again").pending()) == 1


def test_killed_while_settling_the_update_stays_until_its_local_state_is_installed(tmp_path: Path):
    for step in itertools.count():
        place = tmp_path / str(step)
        local_state(place).save("run-1", 1, OLD)
        fsync = Fsync()
        box = outbox(place, fsync)
        box.put(entry_for(), MESSAGE, NEW)
        fsync.killed_at = fsync.num_calls + step
        try:
            box.settle("a-1")
        except Killed:
            pass
        else:
            break

        reopened = outbox(place)
        installed = kept_step(place) == NEW.step
        assert installed or len(reopened.pending()) == 1
        for pending in reopened.pending():  # the server gives the same receipt again
            reopened.settle(pending.entry.assignment_id)
        assert kept_step(place) == NEW.step
        assert outbox(place).pending() == []
    assert step == 3, "two syncs install the local state, one forgets the update"


def test_a_full_disk_is_named_and_leaves_no_half_update(tmp_path: Path):
    def full_disk(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    outbox(tmp_path)
    full = Outbox(tmp_path / "outbox", local_state(tmp_path), full_disk)

    with pytest.raises(StateNotWritable, match="No space left on device"):
        full.put(entry_for(), MESSAGE, NEW)
    assert outbox(tmp_path).pending() == []
    outbox(tmp_path).put(entry_for(), MESSAGE, NEW)
    with pytest.raises(StateNotWritable, match="No space left on device"):
        full.settle("a-1")


def test_an_update_being_deleted_when_the_process_ended_is_gone(tmp_path: Path):
    outbox(tmp_path).put(entry_for(), MESSAGE, NEW)
    (tmp_path / "outbox" / "a-1").rename(tmp_path / "outbox" / ".old-a-1")
    (tmp_path / "outbox" / ".old-a-1" / "entry.json").unlink()

    assert outbox(tmp_path).pending() == []
    assert list((tmp_path / "outbox").iterdir()) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "entry.json").unlink(),
        lambda path: (path / "entry.json").write_bytes(b"{}"),
        lambda path: (path / "update.tensors").write_bytes(MESSAGE_BYTES[:-1]),
        lambda path: (path / "update.tensors").unlink(),
        lambda path: shutil.copytree(path, path.with_name("a-2")),
    ],
    ids=["no entry", "wrong entry", "cut message", "no message", "entry of another"],
)
def test_a_damaged_update_is_named_and_never_sent(tmp_path: Path, damage):
    outbox(tmp_path).put(entry_for(), MESSAGE, NEW)
    damage(tmp_path / "outbox" / "a-1")

    with pytest.raises(LocalStateCorrupt, match="update for assignment a-"):
        outbox(tmp_path).pending()


@pytest.mark.parametrize("assignment_id", ["../a", "a/b", "", ".new-a"])
def test_an_assignment_id_that_names_another_place_is_refused(tmp_path: Path, assignment_id: str):
    with pytest.raises(UnexpectedAnswer):
        outbox(tmp_path).put(entry_for(assignment_id), MESSAGE, None)
