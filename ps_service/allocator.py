# SPDX-License-Identifier: Apache-2.0
"""What the C library does with memory that is freed: it keeps some, for buffers like those before them.

Left alone, glibc gives large buffers back to the system as soon as they are freed, and gets them again page
by page when the next one is made: a third of what some aggregations took. And it keeps memory for nearly
every thread by itself, where most of what is allocated here is a buffer that one thread has at a time.
"""

import ctypes
from contextlib import suppress

ARENAS = 2
KEPT_BYTES = 10 * 1024 * 1024
"""By each arena, of what was freed last."""
MAPPED_FROM_BYTES = 8 * 1024 * 1024
"""A buffer of this size is the system's own, and goes back to it at once."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h of glibc


def keep_freed_memory() -> None:
    """Let all threads share a few arenas, and these keep a little; with another C library nothing changes."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, ARENAS)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)
