# SPDX-License-Identifier: Apache-2.0
"""A small disk of one's own, which can be filled and made read-only: a tmpfs in a mount namespace.

The namespace is held open by a process that ends with its input, and the disk with it. No privilege is needed
beyond user namespaces. From here the disk is a path under /proc; a process is put on it by `Disk.enter`.
"""

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_MOUNT = 'mount -t tmpfs -o size="$2" none "$1" && echo mounted && exec cat'
_READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"'
_WRITABLE = 'mount -o remount,bind,rw "$1"'
_LIMIT_S = 30


class Disk:
    """The disk, at `mount_point` for those who are inside and at `path` for everyone else."""

    def __init__(self, mount_point: Path, holder: int) -> None:
        self.mount_point = mount_point
        self.path = Path(f"/proc/{holder}/root{mount_point}")
        self.enter = ("nsenter", "--preserve-credentials", "-U", "-m", "-t", str(holder), "--")
        self._ballast = self.path / "ballast"

    def fill(self, leaving_bytes: int = 0) -> None:
        """Leave just so much room, in whole pages."""
        with self._ballast.open("ab") as file:
            taken = self.free_bytes - leaving_bytes
            assert taken > 0, f"{self.free_bytes} bytes are free, {leaving_bytes} were to be left"
            os.posix_fallocate(file.fileno(), file.tell(), taken)
        assert self.free_bytes <= leaving_bytes

    def make_room(self) -> None:
        self._ballast.unlink()

    @property
    def free_bytes(self) -> int:
        disk = os.statvfs(self.path)
        return disk.f_bavail * disk.f_frsize

    def make_read_only(self, *processes: int) -> None:
        """Once: no name is made or removed any more, and no file is opened for writing.

        A disk in use can be found to be so, but not asked to be: a second mount, in front of the first, is
        read-only to all that is opened from now on. A limit of no byte at all stands for what files answer
        that `processes` had open for writing before.
        """
        self._mount(_READ_ONLY)
        for process in processes:
            _limit_writes(process, 0)

    def make_writable(self, *processes: int) -> None:
        self._mount(_WRITABLE)
        for process in processes:
            _limit_writes(process, resource.RLIM_INFINITY)

    def _mount(self, script: str) -> None:
        command = [*self.enter, "sh", "-c", script, "sh", str(self.mount_point)]
        subprocess.run(command, check=True, timeout=_LIMIT_S)

    def names(self) -> set[str]:
        """Every file on the disk but those of the database, the lock and what fills it."""
        files = {str(path.relative_to(self.path)) for path in self.path.rglob("*") if path.is_file()}
        return {name for name in files if not name.startswith("records.sqlite")} - {"lock", "ballast"}


def _limit_writes(process: int, size_bytes: int) -> None:
    _, most = resource.prlimit(process, resource.RLIMIT_FSIZE)
    resource.prlimit(process, resource.RLIMIT_FSIZE, (size_bytes, most))


@contextmanager
def a_small_disk(
    mount_point: Path, size_bytes: int, require_part: Callable[[bool, str], None]
) -> Iterator[Disk]:
    """A new disk; skips the test, or fails it, where a user may not mount one."""
    require_part(shutil.which("unshare") is not None and shutil.which("nsenter") is not None, "util-linux")
    mount_point.mkdir()
    command = ["unshare", "-rm", "sh", "-c", _MOUNT, "sh", str(mount_point), str(size_bytes)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        mounted = holder.stdout.readline() == b"mounted\n"
        require_part(mounted, "permission to mount a disk in a namespace of one's own")
        yield Disk(mount_point, holder.pid)
    finally:
        holder.communicate(timeout=_LIMIT_S)
