# SPDX-License-Identifier: Apache-2.0
"""Work in threads is never left behind."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import pytest

from worker.patience import Stopped
from worker.threads import accompanied, stoppable, to_its_end


class Work:
    """Goes on until it is told to stop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.begun = asyncio.Event()
        self.ended = False

    def __call__(self, stop: threading.Event) -> int:
        self._loop.call_soon_threadsafe(self.begun.set)
        assert stop.wait(10)
        self.ended = True
        raise Stopped


async def companion() -> NoReturn:
    while True:
        await asyncio.sleep(60)


async def failing_after(begun: asyncio.Event) -> NoReturn:
    await begun.wait()
    raise LookupError("the companion's own")


async def test_the_works_result_is_given_and_its_companion_ended():
    beside = asyncio.ensure_future(companion())

    assert await accompanied(stoppable(lambda stop: 3, None), _handed_on(beside)) == 3
    assert beside.cancelled()


async def _handed_on(future: "asyncio.Future[NoReturn]") -> NoReturn:
    await future


async def test_an_error_of_the_work_is_given_as_it_is():
    def fail(stop: threading.Event) -> int:
        raise LookupError("the work's own")

    with pytest.raises(LookupError, match="the work's own"):
        await accompanied(stoppable(fail, None), companion())


async def test_a_companion_that_fails_stops_the_work_and_is_heard_once_that_has_ended():
    work = Work()
    with pytest.raises(LookupError, match="the companion's own"):
        await accompanied(stoppable(work, None), failing_after(work.begun))
    assert work.ended


async def test_cancelled_however_often_it_ends_when_the_work_has():
    loop = asyncio.get_running_loop()
    begun, stopping, release = asyncio.Event(), asyncio.Event(), threading.Event()

    def work(stop: threading.Event) -> None:
        loop.call_soon_threadsafe(begun.set)
        assert stop.wait(10)
        loop.call_soon_threadsafe(stopping.set)
        assert release.wait(10)

    waiting = asyncio.create_task(accompanied(stoppable(work, None), companion()))
    await begun.wait()
    waiting.cancel()
    await stopping.wait()
    waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()

    release.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_work_that_was_given_up_while_it_waited_for_its_thread_never_begins():
    busy, release = threading.Event(), threading.Event()
    begun: list[int] = []

    def occupy() -> None:
        busy.set()
        release.wait(10)

    with ThreadPoolExecutor(1) as executor:
        executor.submit(occupy)
        waiting = asyncio.create_task(stoppable(lambda stop: begun.append(1), executor))
        await asyncio.to_thread(busy.wait, 10)
        waiting.cancel()
        await asyncio.sleep(0)
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert begun == []


async def test_a_short_action_is_done_to_its_end_however_often_it_is_cancelled():
    loop = asyncio.get_running_loop()
    begun, release, done = asyncio.Event(), threading.Event(), threading.Event()

    def act() -> None:
        loop.call_soon_threadsafe(begun.set)
        release.wait(10)
        done.set()

    acting = asyncio.create_task(to_its_end(act))
    await begun.wait()
    for _ in range(2):
        acting.cancel()
        await asyncio.sleep(0)
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await acting
    assert done.is_set()
