# SPDX-License-Identifier: Apache-2.0
"""A finished update survives a crash until its receipt arrives.

    <directory>/<assignment>/entry.json       what it is: assignment, run, round and its UpdateHeader
                             update.tensors   the tensor message, byte for byte as it is sent
                             kept/            the new local state, installed when the receipt arrives
    <directory>/.new-<assignment>/            being written; promises nothing
    <directory>/.old-<assignment>/            settled or dropped; being deleted

Where a crash can fall, and what the next start finds:

    before `.new-` is renamed        no entry: the assignment is asked for and trained again
    after it, before the receipt     the entry: the same bytes are declared and sent again
    after the receipt, before the    the entry and the old local state: declaring the same digest gives
    new local state is moved         the same receipt, and settling is repeated
    between the moves of its two     the entry and the old local state, the new tensors beside it: as
    files                            above, and the file that is left is moved
    before the entry is renamed      the entry without `kept/`, and the new local state: as above, and
    to `.old-`                       there is nothing left to move
    while `.old-` is deleted         no entry: `.old-` is swept
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from protocol.errors import FedSophiaError, LocalStateCorrupt
from protocol.messages import Said, UpdateHeader, parse
from worker.durable import (
    Fsync,
    file_name_for,
    make_private_directory,
    sync_directory,
    write_new_file,
    writing,
)
from worker.local_state import Kept, LocalState

_ENTRY, _MESSAGE, _KEPT = "entry.json", "update.tensors", "kept"
_NEW, _OLD = ".new-", ".old-"


class Entry(Said):
    """An update that waits for its receipt."""

    schema_version: Literal[1] = 1
    assignment_id: str
    run_id: str
    round: int = Field(ge=0)
    header: UpdateHeader


@dataclass(frozen=True)
class Pending:
    """An entry, and the file that holds its tensor message."""

    entry: Entry
    message_path: Path


class Outbox:
    """The updates of one worker that have no receipt yet."""

    def __init__(self, directory: Path, local_state: LocalState, fsync: Fsync = os.fsync) -> None:
        self._directory = directory
        self._local_state = local_state
        self._fsync = fsync
        with writing(directory):
            make_private_directory(directory, fsync)
            if any(directory.iterdir()):  # left by a process that may have been killed before it could sync
                sync_directory(directory, fsync)
            for leftover in (*directory.glob(f"{_NEW}*"), *directory.glob(f"{_OLD}*")):
                shutil.rmtree(leftover)

    def put(self, entry: Entry, message: Sequence[memoryview], kept: Kept | None) -> None:
        """Keep a finished update: once this returns, it outlives a crash.

        Raises:
            StateNotWritable: the disk will not have it.
        """
        name = file_name_for(entry.assignment_id)
        new = self._directory / f"{_NEW}{name}"
        with writing(self._directory):
            shutil.rmtree(new, ignore_errors=True)
            make_private_directory(new, self._fsync)
            write_new_file(new / _MESSAGE, message, self._fsync)
            if kept is not None:
                LocalState(new / _KEPT, self._fsync).save(entry.run_id, entry.round, kept)
            write_new_file(new / _ENTRY, [entry.model_dump_json().encode()], self._fsync)
            sync_directory(new, self._fsync)
            new.rename(self._directory / name)
            sync_directory(self._directory, self._fsync)

    def pending(self) -> list[Pending]:
        """Every update without a receipt, oldest round first.

        Raises:
            LocalStateCorrupt: an entry cannot be read.
        """
        found = [
            Pending(self._read(path), path / _MESSAGE)
            for path in self._directory.iterdir()
            if not path.name.startswith(".")
        ]
        return sorted(found, key=lambda pending: (pending.entry.run_id, pending.entry.round))

    def settle(self, assignment_id: str) -> None:
        """The receipt has come: install the new local state, then forget the update.

        Raises:
            LocalStateCorrupt: the entry cannot be read.
            StateNotWritable: the disk will not have it.
        """
        path = self._directory / file_name_for(assignment_id)
        if (path / _KEPT).is_dir():
            new_state = LocalState(path / _KEPT, self._fsync)
            self._local_state.take_over(new_state, self._read(path).run_id)
        self.drop(assignment_id)

    def drop(self, assignment_id: str) -> None:
        """Forget the update, and the local state that came with it.

        Raises:
            StateNotWritable: the disk will not have it.
        """
        name = file_name_for(assignment_id)
        old = self._directory / f"{_OLD}{name}"
        with writing(self._directory):
            (self._directory / name).rename(old)
            sync_directory(self._directory, self._fsync)
            shutil.rmtree(old)

    def _read(self, path: Path) -> Entry:
        try:
            entry = parse(Entry, (path / _ENTRY).read_bytes())
            size_bytes = (path / _MESSAGE).stat().st_size
        except OSError as error:
            raise LocalStateCorrupt(f"update for assignment {path.name}: {error.strerror}") from None
        except FedSophiaError as error:
            raise LocalStateCorrupt(f"update for assignment {path.name}: {error.detail}") from None
        if entry.assignment_id != path.name:
            raise LocalStateCorrupt(
                f"update for assignment {path.name}: it says it is for {entry.assignment_id}"
            )
        if size_bytes != entry.header.size_bytes:
            raise LocalStateCorrupt(
                f"update for assignment {path.name}: {size_bytes} bytes, expected {entry.header.size_bytes}"
            )
        return entry
