# SPDX-License-Identifier: Apache-2.0
"""Tells a disk that takes nothing from any other failure, in words that name no path of this machine."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import OperationalError

from protocol.errors import StorageNotWritable

FULL = "the server's disk is full"
READ_ONLY = "the server's disk is read-only"
FAILING = "the server cannot write to its disk"

_OF_ERRNO = {errno.ENOSPC: FULL, errno.EDQUOT: FULL, errno.EROFS: READ_ONLY}
_SQLITE_READONLY, _SQLITE_IOERR, _SQLITE_FULL, _SQLITE_CANTOPEN = 8, 10, 13, 14
_OF_SQLITE = {
    _SQLITE_FULL: FULL,
    _SQLITE_READONLY: READ_ONLY,
    _SQLITE_IOERR: FAILING,
    _SQLITE_CANTOPEN: FAILING,
}
_NO_ROOM_BYTES = 64 * 1024
"""With less than this left, SQLite cannot make the small files that it keeps beside a database."""


@contextmanager
def writing_files() -> Iterator[None]:
    """Names the error when the disk will not have what is written here.

    Raises:
        StorageNotWritable: for any OSError, with the system's own words.
    """
    try:
        yield
    except OSError as error:
        words = error.strerror or type(error).__name__
        raise StorageNotWritable(f"{_OF_ERRNO.get(error.errno or 0, FAILING)}: {words}") from error


@contextmanager
def using_database(directory: Path | None) -> Iterator[None]:
    """Names the error when SQLite fails because its disk does; every other passes through as it is.

    Args: directory: of the database, to be asked where SQLite does not say what ails its disk.

    Raises:
        StorageNotWritable: with SQLite's own words.
    """
    try:
        yield
    except OperationalError as error:
        code = _sqlite_code(error)
        if code not in _OF_SQLITE:
            raise
        kind = _OF_SQLITE[code]
        if kind is FAILING and directory is not None:
            kind = _what_ails(directory)
        raise StorageNotWritable(f"{kind}: {error.orig}") from error


def is_read_only(error: OperationalError) -> bool:
    """SQLite has the file open for reading alone; opened so once, it stays so."""
    return _sqlite_code(error) == _SQLITE_READONLY


def _sqlite_code(error: OperationalError) -> int:
    code: int = getattr(error.orig, "sqlite_errorcode", 0)
    return code & 0xFF  # the rest is a detail of the same kind


def _what_ails(directory: Path) -> str:
    try:
        disk = os.statvfs(directory)
    except OSError:
        return FAILING
    if disk.f_flag & os.ST_RDONLY:
        return READ_ONLY
    return FULL if disk.f_bavail * disk.f_frsize < _NO_ROOM_BYTES else FAILING
