# SPDX-License-Identifier: Apache-2.0
"""Local files for bytes that have yet to go elsewhere: nothing in them outlives this process."""

import contextlib
import io
import os
import secrets
from pathlib import Path

from ps_service.storage.not_writable import writing_files


class Spool:
    """A directory of this process alone, empty at its start."""

    def __init__(self, directory: Path) -> None:
        """Raises: StorageNotWritable."""
        self._directory = directory
        self._not_removed: set[Path] = set()
        with writing_files():
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            for left_behind in directory.iterdir():
                left_behind.unlink()

    def open(self) -> "SpoolFile":
        """A new file. Raises: StorageNotWritable."""
        with writing_files():
            for left_behind in list(self._not_removed):
                left_behind.unlink(missing_ok=True)
                self._not_removed.discard(left_behind)
            path = self._directory / secrets.token_hex(16)
            return SpoolFile(self, path, path.open("x+b", buffering=0))

    def remove(self, path: Path) -> None:
        """Now, or if the disk is read-only, when the next file is opened."""
        try:
            path.unlink(missing_ok=True)
        except OSError:
            self._not_removed.add(path)


class SpoolFile:
    """A file that is written from its beginning to its end."""

    def __init__(self, spool: Spool, path: Path, file: io.FileIO) -> None:
        self.path = path
        self._spool = spool
        self._file = file
        self.size_bytes = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Raises: StorageNotWritable."""
        view = memoryview(data)
        with writing_files():
            while view:
                written = self._file.write(view)
                self.size_bytes += written
                view = view[written:]

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        return os.preadv(self._file.fileno(), [buffer], offset)

    def read(self, start: int, stop: int) -> bytes:
        """Bytes start … stop-1, all of them written before."""
        with writing_files():
            return os.pread(self._file.fileno(), stop - start, start)

    def remove(self) -> None:
        """Leave no trace; raises nothing."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._spool.remove(self.path)
