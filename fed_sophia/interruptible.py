# SPDX-License-Identifier: Apache-2.0
"""Runs a coroutine, or threads, that Ctrl-C, SIGTERM and a closed terminal end tidily."""

import asyncio
import signal
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


class Interrupted(Exception):
    """A signal asked the command to stop, and it has."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


def run_interruptibly(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end; the first SIGINT, SIGTERM or SIGHUP cancels it, later ones await its clean-up.

    An ignored SIGHUP stays ignored, so that `nohup` keeps its meaning.

    Raises:
        Interrupted: a signal came before `work` was done.
    """
    return asyncio.run(_with_signals(work))


def run_until_stopped(work: Coroutine[Any, Any, None]) -> None:
    """Run what has no end of its own: to be stopped by a signal is how it succeeds."""
    with suppress(Interrupted):
        run_interruptibly(work)


async def _with_signals(work: Coroutine[Any, Any, T]) -> T:
    received: list[int] = []
    task = asyncio.ensure_future(work)

    def stop(number: int) -> None:
        if not received:
            task.cancel()
        received.append(number)

    loop = asyncio.get_running_loop()
    for number in _stopping_signals():
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if received:
            raise Interrupted(received[0]) from None
        raise


@contextmanager
def signals_noted() -> Iterator[threading.Event]:
    """Give an event that Ctrl-C, SIGTERM and a closed terminal set, for work in threads that heeds it.

    An exception out of nowhere will not do there: raised while a thread is being started, it leaves that
    thread running when Python ends, which kills the process.

    Raises:
        Interrupted: afterwards, if a signal came.
    """
    received: list[int] = []
    stop = threading.Event()

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        stop.set()

    before = {}
    if threading.current_thread() is threading.main_thread():  # no other may say what signals do
        before = {number: signal.signal(number, note) for number in _stopping_signals()}
    try:
        yield stop
    except Exception:
        if not received:
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise Interrupted(received[0])


def _stopping_signals() -> list[signal.Signals]:
    hangup: signal.Signals | None = getattr(signal, "SIGHUP", None)  # not every platform has it
    if hangup is None or signal.getsignal(hangup) is signal.SIG_IGN:
        return [signal.SIGINT, signal.SIGTERM]
    return [signal.SIGINT, signal.SIGTERM, hangup]
