# SPDX-License-Identifier: Apache-2.0
"""Work that threads share, its results taken one after another in the order of the work.

The contract of `in_order`:

- `make(item)` runs in one of the threads, in a copy of the caller's context; `take(made)` runs in the
  caller's own thread, in the order of the items: what is taken is the same for any number of threads.
- At most threads + `AHEAD` items are begun and not yet taken: that bounds the memory they hold.
- The first error, in the order of the items, is raised here, and so is one of `take` or of the items
  themselves; what has not begun by then never does.
- However the call ends, its threads have ended before it.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")

AHEAD = 1
"""Items that are made and wait to be taken, while every thread makes another."""
MOST_THREADS = 4
"""Each has memory of its own, and so many make more than one thread can hash and write."""


def cores() -> int:
    """How many this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def useful_threads() -> int:
    """How many beside the caller's this machine has cores for; with none, all is done in turn."""
    return min(cores() - 1, MOST_THREADS)


def in_order(
    items: Iterable[Item], make: Callable[[Item], Made], take: Callable[[Made], None], threads: int
) -> None:
    """Make something of each item, in threads, and take it here, in the items' order.

    Args: threads: beside the caller's; with 0, it makes and takes in turn.
    """
    if threads == 0:
        for item in items:
            take(make(item))
        return
    begun: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(threads, "in-order") as executor:
        try:
            for item in items:
                if len(begun) == threads + AHEAD:
                    take(begun.popleft().result())
                begun.append(executor.submit(copy_context().run, make, item))
            while begun:
                take(begun.popleft().result())
        finally:
            for each in begun:
                each.cancel()
