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

Companion = Callable[[], Coroutine[None, None, NoReturn]]
"""Goes on beside some work until it fails, which ends the work."""


async def for_ever() -> NoReturn:
    """A companion that never fails."""
    while True:
        await asyncio.Event().wait()


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
        await until_ended([working], STOPPING_S)


async def accompanied(work: Coroutine[None, None, T], *companions: Coroutine[None, None, NoReturn]) -> T:
    """Give the result of `work`; where a companion ends first, by an error, the work is cancelled.

    However this ends, all have ended before.
    """
    working: asyncio.Future[T] = asyncio.ensure_future(work)
    beside: list[asyncio.Future[T]] = [asyncio.ensure_future(companion) for companion in companions]
    everything = [working, *beside]
    try:
        ended, _ = await asyncio.wait(everything, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else ended.pop().result()
    finally:
        for one in everything:
            one.cancel()
        await until_ended(everything)


async def to_its_end(action: Callable[[], T]) -> T:
    """Give the result of a short action on files, done in a thread; a cancellation waits until it is done."""
    acting = asyncio.get_running_loop().run_in_executor(None, action)
    await until_ended([acting])
    return acting.result()


async def until_ended(works: Sequence["asyncio.Future[T]"], within_s: float | None = None) -> None:
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
