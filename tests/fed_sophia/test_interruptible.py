# SPDX-License-Identifier: Apache-2.0
"""Which signals end a command, and how."""

import asyncio
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from fed_sophia.interruptible import Interrupted, run_interruptibly, signals_noted
from worker.patience import Stopped


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


async def _after(number: signal.Signals) -> str:
    os.kill(os.getpid(), number)
    await asyncio.sleep(0.1)
    return "done"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_work_with_its_exit_code(number: signal.Signals) -> None:
    with pytest.raises(Interrupted, match=number.name) as ending:
        run_interruptibly(_after(number))
    assert ending.value.exit_code == 128 + number


def test_work_that_was_started_with_nohup_survives_its_terminal() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert run_interruptibly(_after(signal.SIGHUP)) == "done"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_for_threads_that_heed_it_and_raised_when_they_have_ended(
    number: signal.Signals,
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=number.name), signals_noted() as stop:
        os.kill(os.getpid(), number)
        assert stop.wait(5)
        raise Stopped  # as work does that has heeded it
    assert signal.getsignal(number) == before


def test_an_error_of_the_work_is_its_own_where_no_signal_came() -> None:
    with pytest.raises(ValueError, match="mine"), signals_noted():
        raise ValueError("mine")


def test_in_another_thread_nothing_is_said_of_signals() -> None:
    def work() -> bool:
        with signals_noted() as stop:
            return stop.is_set()

    with ThreadPoolExecutor(1) as executor:
        assert executor.submit(work).result() is False
