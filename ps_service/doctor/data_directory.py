# SPDX-License-Identifier: Apache-2.0
"""Whether the data directory is there, takes files and has room."""

import os
import secrets
import shutil
from pathlib import Path

from protocol.errors import StorageNotWritable
from ps_service.doctor.finding import Finding, error, ok, warning
from ps_service.settings import Settings
from ps_service.storage import directory_lock
from ps_service.storage.not_writable import writing_files

PROBE_BYTES = 4096
"""An empty file can be made on a full disk."""
LITTLE_BYTES = 2 * 1024**3
NONE_BYTES = 64 * 1024**2


def check_data_directory(settings: Settings) -> Finding:
    """Whether a server may use it; one that does already is no error."""
    directory = settings.server_data_dir
    try:
        if not directory.exists():
            return _to_be_made(directory)
        if not directory.is_dir():
            return error(f"{directory} is no directory", "name another: FED_SOPHIA_SERVER_DATA_DIR")
        with writing_files():
            probe(directory)
        held = directory_lock.is_held(directory)
    except PermissionError as met:
        return error(f"{directory}: {met.strerror}", "run this as the server's user, who is to own it")
    except StorageNotWritable as met:
        return error(
            f"{directory}: {met.detail}",
            "free some space, mount the disk for writing, or give the directory to the server's user",
        )
    return _room(directory, "; a server is running on it" if held else "")


def probe(directory: Path) -> None:
    """Write a file durably, read it, remove it. Raises: OSError."""
    path = directory / f"probe-{secrets.token_hex(8)}"
    data = secrets.token_bytes(PROBE_BYTES)
    try:
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if path.read_bytes() != data:
            raise OSError("what was written is not what is read")
    finally:
        path.unlink(missing_ok=True)


def _to_be_made(directory: Path) -> Finding:
    parent = next(each for each in directory.absolute().parents if each.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        return error(
            f"{directory} is not there, and cannot be made in {parent}",
            f"make {directory} and give it to the server's user, or name another: FED_SOPHIA_SERVER_DATA_DIR",
        )
    return _room(parent, f"; {directory} is not there yet, the first start makes it")


def _room(directory: Path, more: str) -> Finding:
    free_bytes = shutil.disk_usage(directory).free
    said = f"{free_bytes / 1e9:.1f} GB are free in {directory}{more}"
    if free_bytes < NONE_BYTES:
        return error(said, "free some space: a server takes nothing on a full disk", free_bytes=free_bytes)
    if free_bytes < LITTLE_BYTES:
        return warning(
            said,
            "free some space: each update takes its size until its round ends, and each version that is kept",
            free_bytes=free_bytes,
        )
    return ok(said, free_bytes=free_bytes)
