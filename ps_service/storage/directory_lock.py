# SPDX-License-Identifier: Apache-2.0
"""A data directory is one process's at a time: whoever holds its lock, until that process ends."""

import fcntl
import os
from pathlib import Path

from protocol.errors import InvalidUsage

LOCK = "lock"


def hold(directory: Path) -> int:
    """Take the lock; give its descriptor, which is to be closed at the end.

    Raises:
        InvalidUsage: another server has it.
        OSError: the file cannot be made.
    """
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InvalidUsage(f"data directory {directory}: another server is running on it") from None
    return descriptor


def is_held(directory: Path) -> bool:
    """Whether a server is running on it.

    The system tells only who asks for the lock: it is shared for a moment, in which no server can start here.

    Raises: OSError: the file cannot be read.
    """
    try:
        descriptor = os.open(directory / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
