# SPDX-License-Identifier: Apache-2.0
"""Whether the system lets the server have as many connections as its settings do, and memory."""

import resource
from pathlib import Path

from ps_service.doctor.finding import Finding, ok, warning
from ps_service.settings import Settings

OWN_FILES = 256
"""Of the server beside one a connection: libraries, the database, tensors that are read."""
LITTLE_BYTES = 1024**3
ROOT = Path("/")


def check_limits(settings: Settings, root: Path = ROOT) -> Finding:
    """Open files and memory. Args: root: where `proc` and `sys` are."""
    needed = settings.max_waiting + settings.max_uploads + OWN_FILES
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # the server raises its own limit to this one
    files = "as many files as it likes" if most == resource.RLIM_INFINITY else f"{most} open files"
    free_bytes = available_bytes(root)
    memory = "" if free_bytes is None else f"; {free_bytes / 1e9:.1f} GB of memory are available"
    measured = {"open_files": most, "files_needed": needed}
    if free_bytes is not None:
        measured["memory_bytes"] = free_bytes
    if most != resource.RLIM_INFINITY and most < needed:
        return warning(
            f"the server may have {files}, and its settings let {needed} be needed{memory}",
            f"raise the hard limit (`ulimit -Hn`, LimitNOFILE= of systemd) to {needed}, or lower "
            "FED_SOPHIA_MAX_WAITING",
            **measured,
        )
    if free_bytes is not None and free_bytes < LITTLE_BYTES:
        return warning(
            f"{free_bytes / 1e6:.0f} MB of memory are available",
            "give the server 1 GB or more: many workers, and the aggregation of a large model, take it",
            **measured,
        )
    return ok(f"the server may have {files}, {needed} are needed at most{memory}", **measured)


def available_bytes(root: Path = ROOT) -> int | None:
    """Memory that a new process could have, by the machine and by the control groups it would be in."""
    found = [_of_machine(root / "proc/meminfo"), *_of_groups(root)]
    return min((size_bytes for size_bytes in found if size_bytes is not None), default=None)


def _of_machine(meminfo: Path) -> int | None:
    for line in _text(meminfo).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _of_groups(root: Path) -> list[int]:
    """Of our group and those around it, as version 2 of control groups has them."""
    own = next((line[3:] for line in _text(root / "proc/self/cgroup").splitlines() if line[:3] == "0::"), "/")
    group, found = root / "sys/fs/cgroup" / own.strip("/"), []
    for each in (group, *group.parents):
        most, used = _text(each / "memory.max").strip(), _text(each / "memory.current").strip()
        if most.isdigit() and used.isdigit():
            kept = dict(line.split() for line in _text(each / "memory.stat").splitlines())
            found.append(max(0, int(most) - int(used) + int(kept.get("inactive_file", 0))))
        if each == root / "sys/fs/cgroup":
            break
    return found


def _text(path: Path) -> str:
    """Empty where there is no such file, or it is none of ours."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
