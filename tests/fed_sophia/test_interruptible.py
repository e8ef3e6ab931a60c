# SPDX-License-Identifier: Apache-2.0
"""Which signals end a command, and how."""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from fed_sophia.interruptible import Interrupted, run_interruptibly


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
