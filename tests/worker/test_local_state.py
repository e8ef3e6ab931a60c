# SPDX-License-Identifier: Apache-2.0
"""What a worker keeps between rounds is whole, old or new, whenever it is killed."""

import errno
import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from protocol.errors import LocalStateCorrupt, StateNotWritable, UnexpectedAnswer
from worker.local_state import Kept, LocalState


class Killed(Exception):
    """The process ended here."""


def killed_at(step: int):
    """An fsync that ends the process when it is called for the `step`-th time, from 0."""
    calls = itertools.count()

    def fsync(descriptor: int) -> None:
        if next(calls) == step:
            raise Killed

    return fsync


def full_disk(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def kept_after(step: int) -> Kept:
    values = np.arange(6, dtype=np.float32).reshape(2, 3) + step
    return Kept(step, {"momentum": {"fc.weight": values, "scale": np.float32(step).reshape(())}})


def equal(left: Kept | None, right: Kept) -> bool:
    return (
        left is not None
        and left.step == right.step
        and left.bundles.keys() == right.bundles.keys()
        and all(
            left.bundles[bundle].keys() == tensors.keys()
            and all(np.array_equal(left.bundles[bundle][name], tensors[name]) for name in tensors)
            for bundle, tensors in right.bundles.items()
        )
    )


def test_nothing_is_kept_before_the_first_receipt(tmp_path: Path):
    assert LocalState(tmp_path).load("run-1") is None


def test_what_was_saved_is_loaded_by_the_next_process(tmp_path: Path):
    LocalState(tmp_path).save("run-1", 4, kept_after(40))

    assert equal(LocalState(tmp_path).load("run-1"), kept_after(40))


def test_runs_are_kept_apart_even_when_one_name_begins_like_another(tmp_path: Path):
    state = LocalState(tmp_path)
    state.save("run", 1, kept_after(1))
    state.save("run.2", 1, kept_after(2))
    state.save("run", 2, kept_after(3))

    assert equal(state.load("run"), kept_after(3))
    assert equal(state.load("run.2"), kept_after(2))


def test_an_optimizer_that_keeps_only_its_step_count_gets_it_back(tmp_path: Path):
    LocalState(tmp_path).save("run-1", 1, Kept(10, {}))
    assert LocalState(tmp_path).load("run-1") == Kept(10, {})


def test_only_the_newest_tensors_take_room(tmp_path: Path):
    for round_ in range(5):
        LocalState(tmp_path).save("run-1", round_, kept_after(round_))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("step", range(4))
def test_killed_while_saving_the_state_is_the_old_one_or_the_new_one(tmp_path: Path, step: int):
    LocalState(tmp_path).save("run-1", 1, kept_after(10))

    with pytest.raises(Killed):
        LocalState(tmp_path, killed_at(step)).save("run-1", 2, kept_after(20))

    found = LocalState(tmp_path)
    assert equal(found.load("run-1"), kept_after(20 if step == 3 else 10))
    found.save("run-1", 3, kept_after(30))
    assert equal(found.load("run-1"), kept_after(30))
    assert len(list(tmp_path.iterdir())) == 2


def test_saving_syncs_four_times(tmp_path: Path):
    """The count that the test above goes through: two files and, after each, their directory."""
    calls: list[int] = []
    LocalState(tmp_path, calls.append).save("run-1", 1, kept_after(1))
    assert len(calls) == 4


def test_state_taken_over_is_moved_and_replaces_the_old(tmp_path: Path):
    state, other = LocalState(tmp_path / "state"), LocalState(tmp_path / "other")
    state.save("run-1", 1, kept_after(10))
    other.save("run-1", 2, kept_after(20))

    state.take_over(other, "run-1")

    assert equal(state.load("run-1"), kept_after(20))
    assert len(list((tmp_path / "state").iterdir())) == 2
    assert list((tmp_path / "other").iterdir()) == []


@pytest.mark.parametrize("step", range(2))
@pytest.mark.parametrize("new_step", [10, 20], ids=["equal to the old", "new"])
def test_killed_while_taking_over_the_state_is_whole_and_taking_over_again_ends_it(
    tmp_path: Path, step: int, new_step: int
):
    other = LocalState(tmp_path / "other")
    LocalState(tmp_path / "state").save("run-1", 1, kept_after(10))
    other.save("run-1", 2, kept_after(new_step))

    with pytest.raises(Killed):
        LocalState(tmp_path / "state", killed_at(step)).take_over(other, "run-1")

    found = LocalState(tmp_path / "state")
    assert equal(found.load("run-1"), kept_after(new_step if step == 1 else 10))
    found.take_over(LocalState(tmp_path / "other"), "run-1")
    found.take_over(LocalState(tmp_path / "other"), "run-1")
    assert equal(found.load("run-1"), kept_after(new_step))
    assert len(list((tmp_path / "state").iterdir())) == 2, "what was replaced is gone"


def test_a_forgotten_run_leaves_nothing_and_others_everything(tmp_path: Path):
    state = LocalState(tmp_path)
    state.save("run", 1, kept_after(1))
    state.save("run.2", 1, kept_after(2))

    state.forget("run")
    state.forget("never-kept")

    assert state.load("run") is None
    assert equal(state.load("run.2"), kept_after(2))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_is_named_and_leaves_the_old_state(tmp_path: Path):
    LocalState(tmp_path).save("run-1", 1, kept_after(10))

    with pytest.raises(StateNotWritable, match="No space left on device"):
        LocalState(tmp_path, full_disk).save("run-1", 2, kept_after(20))
    assert equal(LocalState(tmp_path).load("run-1"), kept_after(10))


def tensors_file(directory: Path) -> Path:
    return next(directory.glob("*.tensors"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda directory: tensors_file(directory).unlink(),
        lambda directory: tensors_file(directory).write_bytes(b""),
        lambda directory: tensors_file(directory).write_bytes(tensors_file(directory).read_bytes()[:-1]),
        lambda directory: (directory / "run-1.json").write_bytes(b""),
        lambda directory: (directory / "run-1.json").write_bytes(b'{"step": -1}'),
        lambda directory: (directory / "run-1.json").rename(directory / "run-2.json"),
    ],
    ids=["tensors gone", "tensors empty", "tensors cut", "json empty", "json wrong", "of another run"],
)
def test_damaged_state_is_named_with_the_run_and_the_remedy(tmp_path: Path, damage):
    LocalState(tmp_path).save("run-1", 1, kept_after(10))
    damage(tmp_path)
    run_id = "run-2" if (tmp_path / "run-2.json").exists() else "run-1"

    with pytest.raises(LocalStateCorrupt, match=f"of run {run_id}: .* Remove local_state/"):
        LocalState(tmp_path).load(run_id)


def test_loaded_arrays_cannot_be_changed_by_mistake(tmp_path: Path):
    LocalState(tmp_path).save("run-1", 1, kept_after(10))
    loaded = LocalState(tmp_path).load("run-1")
    assert loaded is not None
    with pytest.raises(ValueError, match="read-only"):
        loaded.bundles["momentum"]["fc.weight"][0, 0] = 1


@pytest.mark.parametrize("run_id", ["../escape", "a/b", "", ".", "..", ".hidden", "a\x00b"])
def test_a_run_id_that_names_another_place_is_refused(tmp_path: Path, run_id: str):
    with pytest.raises(UnexpectedAnswer):
        LocalState(tmp_path).load(run_id)
