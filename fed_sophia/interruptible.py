# SPDX-License-Identifier: Apache-2.0
"""Runs a coroutine, or threads, that Ctrl-C, SIGTERM and a closed terminal end tidily.

Once a signal has come, later ones do nothing any more, not even while the process ends: whoever is stopped
twice is not cut off in its clean-up. (An event loop that handles signals itself gives them back to the system
when it closes, and the system kills.)
"""

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")
NewLoop = Callable[[], asyncio.AbstractEventLoop]


class Interrupted(Exception):
    """A signal asked the command to stop, and it has."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


def run_interruptibly(work: Coroutine[Any, Any, T], new_loop: NewLoop = asyncio.new_event_loop) -> T:
    """Run `work` to its end; the first SIGINT, SIGTERM or SIGHUP cancels it, later ones await its clean-up.

    An ignored SIGHUP stays ignored, so that `nohup` keeps its meaning.

    Raises:
        Interrupted: a signal came before `work` was done.
    """
    loop = new_loop()
    task = loop.create_task(work)

    def stop() -> None:
        with suppress(RuntimeError):  # the loop is closed already
            loop.call_soon_threadsafe(task.cancel)

    with _noting(stop) as received, asyncio.Runner(loop_factory=lambda: loop) as runner:
        try:
            return runner.run(_result_of(task))
        except asyncio.CancelledError:
            if received:
                raise Interrupted(received[0]) from None
            raise


def run_until_stopped(work: Coroutine[Any, Any, None]) -> None:
    """Run what has no end of its own: to be stopped by a signal is how it succeeds.

    It moves bodies for as long as it lives, so it has the faster event loop, uvloop, where that is installed.
    """
    with suppress(Interrupted):
        run_interruptibly(work, _new_fast_loop)


@contextmanager
def signals_noted() -> Iterator[threading.Event]:
    """Give an event that Ctrl-C, SIGTERM and a closed terminal set, for work in threads that heeds it.

    An exception out of nowhere will not do there: raised while a thread is being started, it leaves that
    thread running when Python ends, which kills the process.

    Raises:
        Interrupted: afterwards, if a signal came.
    """
    stop = threading.Event()
    with _noting(stop.set) as received:
        try:
            yield stop
        except Exception:
            if not received:
                raise
    if received:
        raise Interrupted(received[0])


@contextmanager
def _noting(at_the_first: Callable[[], None]) -> Iterator[list[int]]:
    """Note the signals that come. Afterwards those that came do nothing any more, the others what they did.

    Args: at_the_first: called when the first comes, by the main thread between any two of its steps.
    """
    received: list[int] = []
    order = count()

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if next(order) == 0:  # another may come between any two steps here, too: `next` is one
            at_the_first()

    before = {}
    if threading.current_thread() is threading.main_thread():  # no other may say what signals do
        before = {number: signal.signal(number, note) for number in _stopping_signals()}
    try:
        yield received
    finally:
        for number, handler in before.items():
            # a handler of ours would be taken away while Python ends, and the system kills
            signal.signal(number, signal.SIG_IGN if received else handler)


async def _result_of(task: "asyncio.Task[T]") -> T:
    return await task


def _new_fast_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _stopping_signals() -> list[signal.Signals]:
    hangup: signal.Signals | None = getattr(signal, "SIGHUP", None)  # not every platform has it
    if hangup is None or signal.getsignal(hangup) is signal.SIG_IGN:
        return [signal.SIGINT, signal.SIGTERM]
    return [signal.SIGINT, signal.SIGTERM, hangup]
