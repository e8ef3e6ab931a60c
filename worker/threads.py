# SPDX-License-Identifier: Apache-2.0
"""Work in threads that is never left behind: who is cancelled while it goes on waits until it has ended."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor
from typing import NoReturn, TypeVar

from worker.patience import Stopped

STOPPING_S = 20.0
"""How long work that is to stop may take to notice."""

T = TypeVar("T")


async def stoppable(work: Callable[[threading.Event], T], executor: Executor | None) -> T:
    """Do long work in a thread; a cancellation stops it.

    However this ends, the thread has ended before, or had `STOPPING_S` to do so.

    Args:
        work: gives up when the event it is given is set.
    """
    stop = threading.Event()

    def unless_stopped() -> T:
        if stop.is_set():  # it has waited for its thread until now
            raise Stopped
        return work(stop)

    working = asyncio.get_running_loop().run_in_executor(executor, unless_stopped)
    try:
        await asyncio.wait([working])
        return working.result()
    finally:
        stop.set()
        await _until_ended([working], STOPPING_S)


async def accompanied(work: Coroutine[None, None, T], companion: Coroutine[None, None, NoReturn]) -> T:
    """Give the result of `work`; where the companion ends first, by an error, the work is cancelled.

    However this ends, both have ended before.
    """
    working: asyncio.Future[T] = asyncio.ensure_future(work)
    beside: asyncio.Future[T] = asyncio.ensure_future(companion)
    both = [working, beside]
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else beside.result()
    finally:
        for one in both:
            one.cancel()
        await _until_ended(both)


async def to_its_end(action: Callable[[], None]) -> None:
    """Do a short action on files in a thread; a cancellation waits until it is done."""
    acting = asyncio.get_running_loop().run_in_executor(None, action)
    await _until_ended([acting])
    acting.result()


async def _until_ended(works: Sequence["asyncio.Future[T]"], within_s: float | None = None) -> None:
    """Wait for these, whatever they end with; a cancellation is raised when the wait is over."""
    waiting = asyncio.ensure_future(asyncio.wait(works, timeout=within_s))
    cancelled = False
    while not waiting.done():
        try:
            await asyncio.shield(waiting)
        except asyncio.CancelledError:
            cancelled = True
    for work in works:
        if work.done() and not work.cancelled():
            work.exception()  # taken, so that the loop does not complain of an error that nobody took
    if cancelled:
        raise asyncio.CancelledError
