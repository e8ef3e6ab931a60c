# SPDX-License-Identifier: Apache-2.0
"""The model of a forgetful disk forgets what POSIX lets a disk forget, and nothing else."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.power.unsynced import Disk, Tree, lay_out, nothing

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the disk's model reads /proc")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def disk(root: Path) -> Iterator[Disk]:
    with Disk(root) as disk:
        yield disk


def sync(disk: Disk, path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    disk.fsync(descriptor)
    os.close(descriptor)


def holding(*trees: dict[str, bytes | None]) -> set[Tree]:
    return {frozenset(tree.items()) for tree in trees}


def test_what_was_there_before_survives(root: Path) -> None:
    (root / "a").mkdir()
    (root / "a" / "b").write_bytes(b"old")
    with Disk(root) as disk:
        assert disk.after_power_cut() == holding({"a": None, "a/b": b"old"})


def test_of_a_file_that_was_not_synced_the_name_may_survive_and_the_bytes_do_not(
    root: Path, disk: Disk
) -> None:
    (root / "a").write_bytes(b"new")
    assert disk.after_power_cut() == holding({}, {"a": bytes(3)})
    sync(disk, root)
    assert disk.after_power_cut() == holding({"a": bytes(3)})
    with Disk(root.parent, torn=nothing) as other:
        (root / "b").write_bytes(b"new")
        sync(other, root)
        assert other.after_power_cut() == holding({"root": None, "root/a": b"new", "root/b": b""})


def test_syncing_a_file_keeps_its_bytes_and_not_its_name(root: Path, disk: Disk) -> None:
    (root / "a").write_bytes(b"new")
    sync(disk, root / "a")
    assert disk.after_power_cut() == holding({}, {"a": b"new"})


def test_bytes_written_after_the_sync_are_lost(root: Path, disk: Disk) -> None:
    (root / "a").write_bytes(b"first")
    sync(disk, root / "a")
    sync(disk, root)
    (root / "a").write_bytes(b"second")
    assert disk.after_power_cut() == holding({"a": b"first"})


def test_a_file_written_to_without_being_open_for_reading_is_synced_all_the_same(
    root: Path, disk: Disk
) -> None:
    descriptor = os.open(root / "a", os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(descriptor, b"new")
    disk.fsync(descriptor)
    os.close(descriptor)
    sync(disk, root)
    assert disk.after_power_cut() == holding({"a": b"new"})


def test_syncing_a_directory_keeps_its_names_and_not_its_own(root: Path, disk: Disk) -> None:
    (root / "a").mkdir()
    (root / "a" / "b").mkdir()
    sync(disk, root / "a")
    assert disk.after_power_cut() == holding({}, {"a": None, "a/b": None})


def test_names_survive_in_any_order(root: Path, disk: Disk) -> None:
    (root / "a").mkdir()
    (root / "b").mkdir()
    assert disk.after_power_cut() == holding({}, {"a": None}, {"b": None}, {"a": None, "b": None})


def test_a_rename_is_never_half_done(root: Path, disk: Disk) -> None:
    (root / "a").write_bytes(b"old")
    (root / "b").write_bytes(b"replaced")
    for path in (root / "a", root / "b", root):
        sync(disk, path)
    (root / "a").replace(root / "b")
    assert disk.after_power_cut() == holding({"a": b"old", "b": b"replaced"}, {"b": b"old"})


def test_a_file_moved_between_directories_is_in_both_when_only_its_new_one_was_synced(
    root: Path, disk: Disk
) -> None:
    (root / "from").mkdir()
    (root / "to").mkdir()
    (root / "from" / "a").mkdir()
    for path in (root, root / "from"):
        sync(disk, path)
    (root / "from" / "a").rename(root / "to" / "a")
    there: dict[str, bytes | None] = {"from": None, "to": None}
    assert disk.after_power_cut() == holding({**there, "from/a": None}, {**there, "to/a": None})
    sync(disk, root / "to")
    assert disk.after_power_cut() == holding({**there, "from/a": None, "to/a": None}, {**there, "to/a": None})


def test_a_deleted_directory_may_come_back_without_what_was_in_it(root: Path, disk: Disk) -> None:
    (root / "a").mkdir()
    (root / "a" / "b").mkdir()
    for path in (root, root / "a"):
        sync(disk, path)
    (root / "a" / "b").rmdir()
    (root / "a").rmdir()
    assert disk.after_power_cut() == holding({"a": None, "a/b": None}, {"a": None}, {})


def test_a_new_file_inherits_nothing_of_a_deleted_one_whose_place_it_takes(root: Path, disk: Disk) -> None:
    for number in range(20):
        (root / "a").write_bytes(b"old")
        sync(disk, root / "a")
        (root / "a").unlink()
        (root / f"b{number}").write_bytes(b"new")
        sync(disk, root)
    assert disk.after_power_cut() == holding({f"b{number}": bytes(3) for number in range(20)})


def test_the_system_may_write_names_back_unasked_but_brings_no_bytes(root: Path, disk: Disk) -> None:
    (root / "a").mkdir()
    (root / "a" / "b").write_bytes(b"new")
    disk.write_back()
    assert disk.after_power_cut() == holding({"a": None, "a/b": bytes(3)})


def test_what_was_found_can_be_laid_out(root: Path, disk: Disk, tmp_path: Path) -> None:
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "c").write_bytes(b"bytes")
    (root / "a.b").write_bytes(b"")
    with Disk(root) as seen:
        [tree] = seen.after_power_cut()
    lay_out(tree, tmp_path / "found")
    assert (tmp_path / "found" / "a" / "b" / "c").read_bytes() == b"bytes"
    assert (tmp_path / "found" / "a.b").read_bytes() == b""
