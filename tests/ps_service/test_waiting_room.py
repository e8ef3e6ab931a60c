# SPDX-License-Identifier: Apache-2.0
"""The laws of the waiting room: one look for all, no ring missed, nobody hurt by another, no trace left."""

import asyncio

import pytest

from protocol.errors import Internal, StorageNotWritable, WorkerRevoked
from protocol.messages import EvaluationAssignment
from ps_service.bell import Bell
from ps_service.waiting_room import MOST_AT_ONCE, WaitingRoom

SOMETHING = EvaluationAssignment(run_id="run-1", version=1, task="digits", tensors={})
LONG_S = 60.0


class Looks:
    """Finds what it is told to find; a look that is held goes on when it is released."""

    def __init__(self):
        self.batches = []
        self.found = {}
        self.fails_with = None
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def __call__(self, worker_ids):
        self.batches.append(sorted(worker_ids))
        found = {worker_id: self.found.get(worker_id) for worker_id in worker_ids}  # as of its beginning
        await self.may_end.wait()
        if self.fails_with is not None:
            raise self.fails_with
        return found


class Room:
    """A waiting room with its bell, whose looks find what a test says; topics are the workers' names."""

    def __init__(self):
        self.bell, self.looks = Bell(), Looks()
        self.room = WaitingRoom(self.bell, self.looks)
        self.waits = []

    def wait(self, worker_id, wait_s=LONG_S, gone=None):
        self.waits.append(asyncio.create_task(self.room.wait(worker_id, [worker_id], wait_s, gone)))
        return self.waits[-1]

    async def all_wait(self, *worker_ids):
        """Tasks of workers that were looked for once, in vain."""
        tasks = [self.wait(worker_id) for worker_id in worker_ids]
        await self.looked()
        return tasks

    async def looked(self):
        """Come back once everybody who asked was looked for."""
        await asyncio.sleep(0)
        while self.room._looking is not None:
            await asyncio.sleep(0)


@pytest.fixture
async def room():
    made = Room()
    async with asyncio.timeout(20):
        yield made
        await made.room.close()
        await asyncio.gather(*made.waits, return_exceptions=True)
    assert len(made.room) == 0
    assert made.bell._listeners == {}


# --- one look for all --------------------------------------------------------------------------


async def test_those_who_come_in_one_moment_are_looked_for_together(room):
    await room.all_wait("a", "b", "c")
    assert room.looks.batches == [["a", "b", "c"]]


async def test_those_who_come_while_somebody_looks_share_the_next_look(room):
    room.looks.may_end.clear()
    room.wait("a")
    while not room.looks.batches:
        await asyncio.sleep(0)
    for name in ("b", "c", "d"):
        room.wait(name)
    await asyncio.sleep(0)
    room.looks.may_end.set()
    await room.looked()
    assert room.looks.batches == [["a"], ["b", "c", "d"]]


async def test_a_crowd_is_looked_for_in_parts_and_nobody_twice(room):
    names = [f"w-{number}" for number in range(2 * MOST_AT_ONCE + 1)]
    await room.all_wait(*names)
    assert [len(batch) for batch in room.looks.batches] == [MOST_AT_ONCE, MOST_AT_ONCE, 1]
    assert sorted(name for batch in room.looks.batches for name in batch) == sorted(names)


async def test_who_asks_again_has_given_its_earlier_question_up(room):
    room.looks.found = {"a": SOMETHING}
    assert await asyncio.gather(room.wait("a"), room.wait("a")) == [None, SOMETHING]
    assert room.looks.batches == [["a"]]
    assert len(room.room) == 0


async def test_who_is_dismissed_is_answered_with_nothing_and_may_come_again(room):
    [waiting] = await room.all_wait("a")
    room.room.dismiss("a")
    room.room.dismiss("nobody")
    assert await waiting is None
    room.looks.found = {"a": SOMETHING}
    assert await room.wait("a") is SOMETHING


# --- rings -------------------------------------------------------------------------------------


async def test_only_who_is_rung_is_looked_for_again_and_once_for_many_rings(room):
    tasks = await room.all_wait("a", "b", "c")
    room.looks.found = {"b": SOMETHING}
    room.bell.ring(["b", "b", "x"])
    room.bell.ring(["b"])
    assert await tasks[1] is SOMETHING
    assert room.looks.batches[1:] == [["b"]]
    assert not tasks[0].done()


async def test_a_ring_while_somebody_looks_is_not_missed(room):
    """The look began before there was anything, and ends after it was rung."""
    room.looks.may_end.clear()
    waiting = room.wait("a")
    while not room.looks.batches:
        await asyncio.sleep(0)
    room.looks.found = {"a": SOMETHING}
    room.bell.ring(["a"])
    room.looks.may_end.set()
    assert await waiting is SOMETHING
    assert room.looks.batches == [["a"], ["a"]]


async def test_who_is_called_by_name_need_not_wait_for_a_crowd(room):
    names = [f"w-{number:04d}" for number in range(2 * MOST_AT_ONCE)]
    await room.all_wait(*names)
    room.looks.batches.clear()
    room.bell.ring(names)
    room.bell.ring(["worker/w-0999"])
    await room.looked()
    assert "w-0999" in room.looks.batches[0]
    assert [len(batch) for batch in room.looks.batches] == [MOST_AT_ONCE, MOST_AT_ONCE]


async def test_who_is_answered_is_not_looked_for_again(room):
    room.looks.found = {"a": SOMETHING}
    assert await room.wait("a") is SOMETHING
    room.bell.ring(["a"])
    await room.looked()
    assert len(room.looks.batches) == 1


# --- the end of a wait -------------------------------------------------------------------------


async def test_a_wait_ends_when_its_time_is_up(room):
    assert await room.wait("a", wait_s=0.02) is None


async def test_who_does_not_wait_is_looked_for_once_however_long_that_takes(room):
    room.looks.may_end.clear()
    room.looks.found = {"a": SOMETHING}
    with_something, without = room.wait("a", wait_s=0), room.wait("b", wait_s=0)
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert not with_something.done()
    room.looks.may_end.set()
    assert (await with_something, await without) == (SOMETHING, None)


async def test_who_has_hung_up_leaves_at_once_and_others_stay(room):
    hung_up = asyncio.Event()
    gone, stays = room.wait("gone", gone=hung_up.wait), room.wait("stays", gone=asyncio.Event().wait)
    await room.looked()
    hung_up.set()
    assert await gone is None
    assert len(room.room) == 1
    assert not stays.done()
    assert set(room.bell._listeners) == {"stays", "worker/stays"}


async def test_a_cancelled_wait_leaves_no_trace_and_its_look_answers_the_others(room):
    room.looks.may_end.clear()
    room.looks.found = {"a": SOMETHING, "b": SOMETHING}
    cancelled, other = room.wait("a"), room.wait("b")
    while not room.looks.batches:
        await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    assert set(room.bell._listeners) == {"b", "worker/b"}
    room.looks.may_end.set()
    assert await other is SOMETHING


async def test_a_stop_sends_everybody_home_and_nobody_looks_any_more(room):
    tasks = await room.all_wait("a", "b")
    room.looks.found = dict.fromkeys("abc", SOMETHING)
    room.bell.ring(["a"])
    room.room.send_home()
    room.bell.ring_all()
    assert await asyncio.gather(*tasks, room.wait("c")) == [None, None, None]
    assert room.looks.batches == [["a", "b"]]


# --- errors ------------------------------------------------------------------------------------


async def test_a_look_that_fails_is_told_to_all_of_it_and_the_next_one_is_made(room):
    room.looks.fails_with = StorageNotWritable("the disk is full")
    results = await asyncio.gather(room.wait("a"), room.wait("b"), return_exceptions=True)
    assert [type(result) for result in results] == [StorageNotWritable] * 2
    assert [result.detail for result in results] == ["the disk is full"] * 2
    assert results[0] is not results[1]
    room.looks.fails_with = None
    room.looks.found = {"a": SOMETHING}
    assert await room.wait("a") is SOMETHING


async def test_a_look_that_fails_as_nobody_foresaw_is_said_once_and_tells_callers_nothing(room, caplog):
    room.looks.fails_with = KeyError("a secret place")
    results = await asyncio.gather(*(room.wait(name) for name in "abc"), return_exceptions=True)
    assert [type(result) for result in results] == [Internal] * 3
    assert not any("secret" in result.detail for result in results)
    assert [record.getMessage() for record in caplog.records] == ["looking for the work of 3 workers failed"]


async def test_one_worker_s_error_is_told_to_it_alone(room):
    room.looks.found = {"revoked": WorkerRevoked("away"), "b": SOMETHING}
    revoked, other, third = [room.wait(name) for name in ("revoked", "b", "c")]
    assert await other is SOMETHING
    with pytest.raises(WorkerRevoked, match="away"):
        await revoked
    assert not third.done()
