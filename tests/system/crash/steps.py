# SPDX-License-Identifier: Apache-2.0
"""The steps of a process, by name, and the points before and after each of them at which it may die.

A mortal process dies at the first point at which nobody died before it. Started again and again it dies
once before and once after each step that it ever takes, whatever steps there are and in whatever order:
nobody has to write a list of them, and a new fsync is found by itself. The list of deaths is a file, one
point a line, written just before SIGKILL; processes that do the same work share one.
"""

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = "nobody dies any more"
"""Written into the list of deaths, it ends them."""
_ID = re.compile(r"(?<![0-9a-z])[0-9a-f]{12,}(?![0-9a-z])")
_BLOBS_OF_A_BYTE = re.compile(r"(?<=blobs/)[0-9a-f]{2}(?![0-9a-z])")


class Steps:
    """What one process does; nothing happens at a step unless the process is mortal."""

    def __init__(self, deaths: Path | None) -> None:
        """Args: deaths: the list of points at which a process died; None for a process that is not to die."""
        self._deaths = deaths
        self._dying = threading.Lock()  # only one thread writes down what killed the process

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Something that is done while this is open, with a deadly point on either side."""
        self.reached(f"before {name}")
        yield
        self.reached(f"after {name}")

    def reached(self, point: str) -> None:
        """Die here, if nobody has."""
        if self._deaths is None:
            return
        with self._dying:
            seen = points_in(self._deaths)
            if point in seen or NOBODY in seen:
                return
            with self._deaths.open("a") as deaths:
                deaths.write(f"{point}\n")
            os.kill(os.getpid(), signal.SIGKILL)


def points_in(deaths: Path) -> list[str]:
    """Every point at which a process died, in the order of the deaths."""
    return deaths.read_text().splitlines() if deaths.exists() else []


def path_of(descriptor: int) -> Path:
    """The path by which an open file or directory can be found."""
    if sys.platform == "darwin":
        import fcntl

        return Path(fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0").decode())
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def shown(path: Path, root: Path) -> str:
    """A path below `root` (or beside it), without what differs from one run to the next."""
    return without_ids(os.path.relpath(path, root.resolve()))


def without_ids(name: str) -> str:
    """A path or URL without the ids and digests in it: the same step always has the same name."""
    return _BLOBS_OF_A_BYTE.sub("…", _ID.sub("…", name))
