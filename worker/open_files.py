# SPDX-License-Identifier: Apache-2.0
"""How many files, connections among them, this process may have open."""

import resource
from contextlib import suppress

from protocol.errors import InvalidUsage

OF_A_MEMBER = 2
"""The lock of its state directory, and a connection."""
OF_THE_PROCESS = 256
MANY = 10_240
"""As many as macOS gives to who may have any number."""


def more_than(before: int, most: int) -> list[int]:
    """The limits to try for, the best first: none is less than what is allowed already."""
    if before == resource.RLIM_INFINITY:
        return []
    return [most, *([MANY] if before < MANY else [])]


def allow_members(members: int) -> None:
    """Let this process have as many files open as it may, instead of as many as is usual.

    Raises:
        InvalidUsage: they are too few for so many workers.
    """
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in more_than(before, most):
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
            break
    now, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = OF_A_MEMBER * members + OF_THE_PROCESS
    if now != resource.RLIM_INFINITY and now < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))
        raise InvalidUsage(
            f"a swarm of {members} workers opens some {needed} files, and this process may open {now}: "
            "raise that (ulimit -n), or spread them over several processes by --first-index and --of"
        )
