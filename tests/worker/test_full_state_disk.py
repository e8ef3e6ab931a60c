# SPDX-License-Identifier: Apache-2.0
"""A worker whose disk is full or read-only says so by name, and what it kept before is whole."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from protocol.codec import NamedTensor, digest_of, encode_message
from protocol.errors import StateNotWritable
from protocol.messages import UpdateHeader
from tests.small_disk import Disk, a_small_disk
from worker.durable import prove_writable, sole_user
from worker.identity import identity_in, save_identity
from worker.local_state import Kept, LocalState
from worker.outbox import Entry, Outbox

SERVER = "http://fed.example"
MESSAGE = encode_message("update", [NamedTensor("delta", "w", np.ones(5000, np.float32))])
OLD, NEW = (Kept(step, {"momentum": {"w": np.full(5000, step, np.float32)}}) for step in (10, 20))


class State:
    """A worker's state directory in which an update waits for its receipt."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with sole_user(directory):
            self.identity = identity_in(directory, SERVER)
        self.local_state = LocalState(directory / "local_state")
        self.local_state.save("run-1", 1, OLD)
        self.outbox = Outbox(directory / "outbox", self.local_state)
        self.outbox.put(entry_for("a-1"), MESSAGE, NEW)

    def use(self) -> None:
        with sole_user(self.directory):
            pass

    def whole(self) -> bool:
        """Started again, all is as it was."""
        local_state = LocalState(self.directory / "local_state")
        kept = local_state.load("run-1")
        waiting = [each.entry for each in Outbox(self.directory / "outbox", local_state).pending()]
        return (
            identity_in(self.directory, SERVER) == self.identity
            and kept is not None
            and kept.step == OLD.step
            and waiting == [entry_for("a-1")]
        )


WRITES: dict[str, Callable[[State], object]] = {
    "identity": lambda state: save_identity(state.directory, state.identity),
    "probe": lambda state: prove_writable(state.directory),
    "local state": lambda state: state.local_state.save("run-1", 2, NEW),
    "finished update": lambda state: state.outbox.put(entry_for("a-2"), MESSAGE, NEW),
}
CHANGES = WRITES | {
    "lock": State.use,
    "settled update": lambda state: state.outbox.settle("a-1"),
    "dropped update": lambda state: state.outbox.drop("a-1"),
    "forgotten run": lambda state: state.local_state.forget("run-1"),
}


@pytest.fixture
def disk(tmp_path: Path, require_part: Callable[[bool, str], None]) -> Iterator[Disk]:
    with a_small_disk(tmp_path / "disk", 1024 * 1024, require_part) as disk:
        yield disk


def entry_for(assignment_id: str) -> Entry:
    header = UpdateHeader(
        digest=digest_of(MESSAGE),
        size_bytes=sum(buffer.nbytes for buffer in MESSAGE),
        bundles=("delta",),
        encodings={"delta": "f32"},
        num_examples=5,
        local_steps=3,
    )
    return Entry(assignment_id=assignment_id, run_id="run-1", round=2, header=header)


@pytest.mark.parametrize("write", WRITES)
def test_a_full_disk_is_named_as_such_and_all_that_was_kept_is_whole(disk: Disk, write: str) -> None:
    state = State(disk.path / "state")
    before = disk.names()
    disk.fill()
    with pytest.raises(StateNotWritable, match="No space left on device"):
        WRITES[write](state)
    disk.make_room()
    assert state.whole()
    prove_writable(state.directory)
    save_identity(state.directory, state.identity)
    assert disk.names() == before, "the next start, and the next write, leave nothing of what did not fit"


@pytest.mark.parametrize("change", CHANGES)
def test_a_read_only_disk_is_named_as_such_and_all_that_was_kept_is_whole(disk: Disk, change: str) -> None:
    state = State(disk.path / "state")
    before = disk.names()
    disk.make_read_only()
    with pytest.raises(StateNotWritable, match="Read-only file system"):
        CHANGES[change](state)
    assert disk.names() == before
    assert state.whole()
