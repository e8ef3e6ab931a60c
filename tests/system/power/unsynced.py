# SPDX-License-Identifier: Apache-2.0
"""A model of a disk that forgets, at a power cut, what nobody asked it to keep.

All it is told is which descriptors were synced; the rest it sees in the real directory. The rules are what
POSIX grants, made harsh, and the one thing more that every file system in use grants:

- Syncing a file keeps its bytes, not its name. Syncing a directory keeps its names, not what they stand for.
- Of the names changed since, any may have reached the disk, in any order, and any may not.
- Bytes that were not synced never reached it: a name may stand for a file of zeros, or for an empty one.
- A rename is one change: a file is never lost between its old name and its new one, nor found under both
  unless one of the two directories was synced in between.
"""

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

Inode = tuple[int, int]
Names = dict[str, Inode]
Tree = frozenset[tuple[str, bytes | None]]
"""Path → bytes, None for a directory: all that is found after a power cut."""

FEW = 64
"""Up to so many changes are also tried one by one: each alone, and all but each."""


@dataclass(frozen=True)
class Change:
    """One name of one directory that is not what it was when the directory was synced."""

    directory: Inode
    name: str
    before: Inode | None
    now: Inode | None


def zeros(size_bytes: int) -> bytes:
    """The bytes of a file whose length reached the disk, and nothing else."""
    return bytes(size_bytes)


def nothing(_size_bytes: int) -> bytes:
    """The bytes of a file of which nothing reached the disk."""
    return b""


class Disk:
    """What of one directory survives. Everything that is there at the beginning does."""

    def __init__(self, root: Path, torn: Callable[[int], bytes] = zeros) -> None:
        """Args: torn: what is found in place of so many bytes that were not synced."""
        self._path = root
        self._torn = torn
        # kept open: an inode in use is not given to another file, which would inherit its past here
        self._open: dict[Inode, int] = {}
        self._bytes: dict[Inode, bytes] = {}
        self._names: dict[Inode, Names] = {}
        self._directories: set[Inode] = set()
        self._root = self._hold(os.open(root, os.O_RDONLY))
        self._look_around()
        for descriptor in list(self._open.values()):
            self.fsync(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def fsync(self, descriptor: int) -> None:
        """Keep the bytes of this file, or the names of this directory, as they are now."""
        inode = self._hold(os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY))
        if inode in self._directories:
            self._names[inode] = self._names_now(inode)
        else:
            size_bytes = os.fstat(self._open[inode]).st_size
            self._bytes[inode] = os.pread(self._open[inode], size_bytes, 0)

    def write_back(self) -> None:
        """Keep all names as they are now; files whose bytes were not synced stay torn."""
        self._names |= self._look_around()

    def described(self, descriptor: int) -> tuple[str, str]:
        """Whether it is a file or a directory, and its path from the root; "." is the root."""
        kind = "directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        return kind, str(path.relative_to(self._path.resolve()))

    def after_power_cut(self) -> set[Tree]:
        """What may be found if the power fails now."""
        changes = self._changes()
        return {self._tree(survivors) for survivors in _survivors(changes)}

    def _look_around(self) -> dict[Inode, Names]:
        """Hold everything that can be reached; give the names in all directories, also in those deleted."""
        found: dict[Inode, Names] = {}
        waiting = [self._root, *sorted(self._directories)]
        while waiting:
            directory = waiting.pop()
            if directory not in found:
                found[directory] = self._names_now(directory)
                waiting += self._directories.intersection(found[directory].values())
        return found

    def _names_now(self, directory: Inode) -> Names:
        descriptor, names = self._open[directory], Names()
        with os.scandir(descriptor) as entries:
            for entry in entries:
                inode = (directory[0], entry.inode())
                if inode not in self._open:
                    inode = self._hold(os.open(entry.name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=descriptor))
                names[entry.name] = inode
        return names

    def _hold(self, descriptor: int) -> Inode:
        found = os.fstat(descriptor)
        inode = (found.st_dev, found.st_ino)
        if self._open.setdefault(inode, descriptor) != descriptor:
            os.close(descriptor)
        elif stat.S_ISDIR(found.st_mode):
            self._directories.add(inode)
        return inode

    def _changes(self) -> list[list[Change]]:
        """Changes that stand or fall together: those of one rename."""
        changes: list[Change] = []
        for directory, now in self._look_around().items():
            kept = self._names.get(directory, {})
            changes += [
                Change(directory, name, kept.get(name), now.get(name))
                for name in sorted(kept.keys() | now.keys())
                if kept.get(name) != now.get(name)
            ]
        together = {change: [change] for change in changes}
        arrived = {change.now: change for change in changes if change.now is not None}
        for left in changes:
            to = arrived.get(left.before) if left.before is not None else None
            if to is not None and together[to] is not together[left]:
                joined = together[to] + together[left]
                together |= dict.fromkeys(joined, joined)
        return list({id(group): group for group in together.values()}.values())

    def _tree(self, survivors: list[Change]) -> Tree:
        names = {inode: dict(kept) for inode, kept in self._names.items()}
        for change in survivors:
            in_directory = names.setdefault(change.directory, {})
            if change.now is None:
                del in_directory[change.name]
            else:
                in_directory[change.name] = change.now
        return frozenset(self._below(self._root, names, ""))

    def _below(
        self, directory: Inode, names: Mapping[Inode, Names], path: str
    ) -> Iterator[tuple[str, bytes | None]]:
        for name, inode in names.get(directory, {}).items():
            if inode in self._directories:
                yield path + name, None
                yield from self._below(inode, names, f"{path}{name}/")
            elif inode in self._bytes:
                yield path + name, self._bytes[inode]
            else:
                yield path + name, self._torn(os.fstat(self._open[inode]).st_size)


def _survivors(groups: list[list[Change]]) -> Iterator[list[Change]]:
    chosen = [range(0), range(len(groups))]
    everything = set(chosen[1])
    picked = [set(indices) for indices in chosen]
    if len(groups) <= FEW:
        picked += [{index} for index in everything] + [everything - {index} for index in everything]
    for indices in picked:
        yield [change for index in indices for change in groups[index]]


def lay_out(tree: Tree, directory: Path) -> None:
    """Make a directory that holds what was found after a power cut."""
    with suppress(FileExistsError):
        directory.mkdir()
    for path, content in sorted(tree, key=lambda entry: entry[0]):
        if content is None:
            (directory / path).mkdir(mode=0o700)
        else:
            (directory / path).write_bytes(content)
