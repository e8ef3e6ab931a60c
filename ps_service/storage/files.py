# SPDX-License-Identifier: Apache-2.0
"""Blobs as local files, `blobs/ab/abcdef…`: write, fsync, rename, fsync of the directory.

What pauses on its way in lies in `parts/`, and outlives a start; what is in `staging/` does not.

A reader never sees a file that is not whole, and what `seal` has returned for survives a power cut.
Files are opened for each read: no descriptor outlives a call, so a delete is a delete.
"""

import contextlib
import io
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from protocol.errors import StorageCorrupt
from ps_service.storage.not_writable import writing_files

Fsync = Callable[[int], None]
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PART = re.compile(r"[A-Za-z0-9-]{1,100}")
SYNC_BYTES = 8 * 1024 * 1024
"""Of a part: a power cut takes no more of it."""
_PREFIXES = tuple(f"{byte:02x}" for byte in range(256))


class FileBlobs:
    """The blob contract on one directory of a local file system."""

    addresses = None

    def __init__(self, directory: Path, fsync: Fsync = os.fsync) -> None:
        """Args: fsync: makes a file's bytes, or a directory's names, survive a power cut."""
        self.fsync = fsync
        self._blobs = directory / "blobs"
        self._staging = directory / "staging"
        self._parts = directory / "parts"
        self._not_removed: set[Path] = set()
        with writing_files():
            self._blobs.mkdir(parents=True, exist_ok=True)
            self._staging.mkdir(exist_ok=True)
            self._parts.mkdir(exist_ok=True)
            for (
                prefix
            ) in _PREFIXES:  # all now, durably: no seal depends on a directory that another is making
                (self._blobs / prefix).mkdir(exist_ok=True)
            sync_directory(self._blobs, fsync)
            sync_directory(directory, fsync)
            for left_behind in self._staging.iterdir():
                left_behind.unlink()

    def stage(self) -> "StagedFile":
        with writing_files():
            for left_behind in list(self._not_removed):
                left_behind.unlink(missing_ok=True)
                self._not_removed.discard(left_behind)
            path = self._staging / secrets.token_hex(16)
            return StagedFile(self, path, path.open("xb", buffering=0))

    def part(self, name: str) -> "PartFile":
        path = self._parts / _checked(name)
        with writing_files():
            is_new = not path.exists()
            self._not_removed.discard(path)
            part = PartFile(self, path, path.open("a+b", buffering=0))
            if is_new:
                sync_directory(self._parts, self.fsync)
            return part

    def part_bytes(self, name: str) -> int:
        try:
            return (self._parts / _checked(name)).stat().st_size
        except FileNotFoundError:
            return 0

    def parts(self) -> list[str]:
        return [path.name for path in self._parts.iterdir() if _PART.fullmatch(path.name)]

    def discard_part(self, name: str) -> None:
        self.remove_staged(self._parts / _checked(name))

    def remove_staged(self, path: Path) -> None:
        """Now, or if the disk is read-only, when it next takes a staged file."""
        try:
            path.unlink(missing_ok=True)
        except OSError:
            self._not_removed.add(path)

    def path(self, digest: str) -> Path:
        return self._blobs / digest[:2] / digest

    def size(self, digest: str) -> int | None:
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def read_into(self, digest: str, offset: int, buffer: bytearray | memoryview) -> None:
        view, filled = memoryview(buffer), 0
        try:
            descriptor = os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise StorageCorrupt(f"tensor message {digest} is missing") from None
        try:
            while filled < len(view):
                count = os.preadv(descriptor, [view[filled:]], offset + filled)
                if not count:
                    raise StorageCorrupt(
                        f"tensor message {digest}: {offset + len(view)} bytes expected, "
                        f"{offset + filled} found"
                    )
                filled += count
        finally:
            os.close(descriptor)

    def forget(self, digest: str) -> None:
        """Nothing is kept of it."""

    def digests(self) -> Iterator[str]:
        """What else lies in the directory (`lost+found`, somebody's copy) is none of the store's."""
        for prefix in _PREFIXES:
            with contextlib.suppress(FileNotFoundError):
                for path in (self._blobs / prefix).iterdir():
                    if path.name.startswith(prefix) and _DIGEST.fullmatch(path.name):
                        yield path.name

    def delete(self, digest: str) -> None:
        with writing_files():
            self.path(digest).unlink(missing_ok=True)

    def check(self) -> None:
        probe = self.stage()
        try:
            probe.write(bytes(4096))  # an empty file can be made on a full disk
            probe.sync()
        finally:
            probe.discard()


class StagedFile:
    """A file that nobody reads yet."""

    def __init__(self, store: FileBlobs, path: Path, file: io.FileIO) -> None:
        self._store = store
        self._path = path
        self._file = file

    def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        with writing_files():
            while view:
                view = view[self._file.write(view) :]

    def sync(self) -> None:
        with writing_files():
            self._store.fsync(self._file.fileno())

    def seal(self, digest: str) -> None:
        target = self._store.path(digest)
        self.sync()
        with writing_files():
            self._file.close()
            self._path.replace(target)
            sync_directory(target.parent, self._store.fsync)

    def discard(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        self._store.remove_staged(self._path)


class PartFile(StagedFile):
    """A file in the directory of parts."""

    def __init__(self, store: FileBlobs, path: Path, file: io.FileIO) -> None:
        super().__init__(store, path, file)
        self._unsynced_bytes = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        super().write(data)
        self._unsynced_bytes += len(data)
        if self._unsynced_bytes >= SYNC_BYTES:
            self.sync()

    def sync(self) -> None:
        super().sync()
        self._unsynced_bytes = 0

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        return os.preadv(self._file.fileno(), [buffer], offset)

    def close(self) -> None:
        try:
            if self._unsynced_bytes:
                self.sync()
        finally:
            self._file.close()


def _checked(name: str) -> str:
    if not _PART.fullmatch(name):
        raise ValueError(f"{name!r} names no part")
    return name


def sync_directory(path: Path, fsync: Fsync = os.fsync) -> None:
    """Make the names in a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fsync(descriptor)
    finally:
        os.close(descriptor)
