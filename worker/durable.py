# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or absent, also after a power cut, in a directory that one process uses at a time.

The law of this file: bytes are synced before the name that promises them exists, and the directory
is synced after. `fsync` is an argument, so that a test can stop between any two steps.
"""

import fcntl
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol.errors import InvalidUsage, StateNotWritable, UnexpectedAnswer

Fsync = Callable[[int], None]

PROBE_BYTES = 4096
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def file_name_for(identifier: str) -> str:
    """Give an identifier that came from the server as a file name.

    Raises:
        UnexpectedAnswer: it could name another directory.
    """
    if not _SAFE_NAME.fullmatch(identifier):
        raise UnexpectedAnswer(f"identifier {identifier[:64]!r}: expected letters, digits and any of ._-")
    return identifier


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Names the error when the disk will not have what is written in this directory.

    Raises:
        StateNotWritable: with the system's own words.
    """
    try:
        yield
    except OSError as error:
        raise StateNotWritable(f"{directory}: {error.strerror or error}") from error


@contextmanager
def sole_user(directory: Path) -> Iterator[None]:
    """Keep other processes out of a directory; the system lets them in when this one ends, however it ends.

    Raises:
        InvalidUsage: another process is in it.
        StateNotWritable: the directory cannot be made or locked.
    """
    with writing(directory):
        make_private_directory(directory)
        lock = os.open(directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        with writing(directory):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InvalidUsage(
                    f"another worker is running in the state directory {directory}: give each its own"
                ) from None
        yield
    finally:
        os.close(lock)


def prove_writable(directory: Path) -> None:
    """Write a little into a directory and take it away again.

    Raises:
        StateNotWritable: the disk is full, or read-only.
    """
    probe = directory / ".probe"
    with writing(directory):
        probe.unlink(missing_ok=True)
        write_new_file(probe, [bytes(PROBE_BYTES)])
        probe.unlink()


def make_private_directory(path: Path, fsync: Fsync = os.fsync) -> None:
    """Make `path` and the parents it lacks, readable by nobody else."""
    if path.is_dir():
        return
    make_private_directory(path.parent, fsync)
    path.mkdir(mode=0o700, exist_ok=True)
    sync_directory(path.parent, fsync)


def write_new_file(path: Path, buffers: Iterable[bytes | memoryview], fsync: Fsync = os.fsync) -> None:
    """Write a file that must not exist yet (mode 0600) and sync its bytes, not its name."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        for buffer in buffers:
            file.write(buffer)
        file.flush()
        fsync(descriptor)


def replace_file(path: Path, buffers: Iterable[bytes | memoryview], fsync: Fsync = os.fsync) -> None:
    """Put a file in place of another, or of none, in one step."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    write_new_file(temporary, buffers, fsync)
    temporary.replace(path)
    sync_directory(path.parent, fsync)


def sync_directory(path: Path, fsync: Fsync = os.fsync) -> None:
    """Make the names in a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fsync(descriptor)
    finally:
        os.close(descriptor)
