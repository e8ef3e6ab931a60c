# SPDX-License-Identifier: Apache-2.0
"""Which signals end a command, and how."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from types import FrameType
from typing import Any

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
    with pytest.raises(Interrupted, match=number.name), signals_noted() as stop:
        os.kill(os.getpid(), number)
        assert stop.wait(5)
        raise Stopped  # as work does that has heeded it
    os.kill(os.getpid(), number)  # whoever is stopped twice is not cut off while it ends


def test_signals_mean_what_they_did_once_the_work_is_done() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    run_interruptibly(asyncio.sleep(0))
    with signals_noted():
        pass
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert after == before


_STOPPED_TWICE = """
import asyncio, os, signal
from fed_sophia.interruptible import run_until_stopped

async def work():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)
    finally:
        print("cleaning", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.1)
        print("cleaned", flush=True)

run_until_stopped(work())
os.kill(os.getpid(), signal.SIGTERM)
print("ended", flush=True)
"""


def test_who_is_stopped_again_and_again_ends_tidily_all_the_same() -> None:
    """Also after its event loop is closed, which gives the loop's own handlers back to the system."""
    ended = subprocess.run(
        [sys.executable, "-c", _STOPPED_TWICE], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout.split()) == (0, ["cleaning", "cleaned", "ended"]), ended.stderr


@pytest.mark.parametrize("count", range(1, 5))
def test_a_storm_of_signals_ends_a_worker_like_one(count: int) -> None:
    script = (
        "import asyncio\nfrom fed_sophia.interruptible import run_until_stopped\n"
        "async def work():\n print('there', flush=True)\n await asyncio.sleep(60)\nrun_until_stopped(work())"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        for _ in range(count * 20):
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.mark.parametrize("step", range(30))
def test_a_signal_amid_the_handling_of_the_first_hides_neither(step: int) -> None:
    """Its handler is run again at each of its own steps in turn, as the system may do."""
    with pytest.raises(Interrupted), signals_noted() as stop:
        note = signal.getsignal(signal.SIGTERM)
        assert callable(note)
        taken = count()

        def amid(frame: FrameType, event: str, _argument: object) -> Any:
            frame.f_trace_opcodes = True
            if event == "opcode" and next(taken) == step:
                note(signal.SIGTERM, None)
            return amid

        before = sys.gettrace()
        sys.settrace(amid)
        note(signal.SIGTERM, None)
        sys.settrace(before)
    assert stop.is_set()


def test_an_error_of_the_work_is_its_own_where_no_signal_came() -> None:
    with pytest.raises(ValueError, match="mine"), signals_noted():
        raise ValueError("mine")


def test_in_another_thread_nothing_is_said_of_signals() -> None:
    def work() -> bool:
        with signals_noted() as stop:
            return stop.is_set()

    with ThreadPoolExecutor(1) as executor:
        assert executor.submit(work).result() is False
