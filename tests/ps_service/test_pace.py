# SPDX-License-Identifier: Apache-2.0
"""Workers that were sent home together do not come back together."""

import asyncio
import contextlib
import random

import pytest

from ps_service.pace import RETURNS_AT_REST_PER_S, RETURNS_PER_S, TOGETHER_S, USUAL_WAIT_S, Pace


def a_pace(waiting=0, seed=0, max_wait_s=600):
    """A pace by which so many requests wait."""
    pace = Pace(max_wait_s, random.Random(seed).random)
    still_open = contextlib.ExitStack()
    for _ in range(waiting):
        still_open.enter_context(pace.waiting())
    return pace, still_open


def test_requests_that_began_together_end_apart_and_never_later_than_they_asked():
    pace, _ = a_pace()
    waits_s = [pace.wait_s(60, now_s=0.5) for _ in range(1000)]
    assert 45 <= min(waits_s) < 46
    assert 59 < max(waits_s) <= 60
    assert len(set(waits_s)) == 1000


def test_who_asks_for_no_wait_waits_for_none():
    for waiting in (0, 5_000):
        assert a_pace(waiting)[0].wait_s(0, now_s=0.5) == 0


def test_of_a_crowd_those_who_leave_in_one_moment_leave_together_and_never_later_than_they_asked():
    pace, _ = a_pace(waiting=5_000)
    for now_s in (1_000.0, 1_000.7, 1_001.9):
        ends_s = [now_s + pace.wait_s(600, now_s) for _ in range(1000)]
        assert {round(end_s, 6) % TOGETHER_S for end_s in ends_s} == {0}
        assert now_s + 450 - TOGETHER_S <= min(ends_s)
        assert max(ends_s) <= now_s + 600
        assert len(set(map(round, ends_s))) > 70


def test_before_a_stop_nobody_is_asked_to_stay_away():
    pace, _ = a_pace(waiting=2_000)
    assert {pace.come_back_s() for _ in range(100)} == {0}


def test_after_a_stop_so_many_come_back_each_second_and_no_more():
    count = 50 * RETURNS_PER_S
    pace, _ = a_pace(waiting=count)
    pace.send_home()
    returns = [pace.come_back_s() for _ in range(count)]
    in_each_second = [returns.count(second) for second in range(50)]
    assert sum(in_each_second) == count, "nobody is sent away for longer than it takes"
    assert max(in_each_second) < 1.5 * RETURNS_PER_S
    assert min(in_each_second) > 0.5 * RETURNS_PER_S


@pytest.mark.parametrize("waiting", [1, RETURNS_PER_S])
def test_a_few_may_come_back_at_once(waiting):
    pace, _ = a_pace(waiting)
    pace.send_home()
    assert {pace.come_back_s() for _ in range(1000)} == {0}


def test_only_those_who_waited_at_the_stop_count():
    pace, home = a_pace(waiting=2_000)
    home.close()
    pace.send_home()
    assert {pace.come_back_s() for _ in range(100)} == {0}


async def test_workers_sent_home_by_a_stop_are_told_when_to_come_back(server):
    """Ten real workers among ten thousand that wait: each comes back within fifty seconds."""
    workers = [await server.enrol(f"worker-{number}") for number in range(10)]
    with contextlib.ExitStack() as others:
        for _ in range(9_990):
            others.enter_context(server.service.pace.waiting())
        async with asyncio.timeout(20):
            asking = [asyncio.create_task(worker.ask(wait_s=60)) for worker in workers]
            for worker in workers:
                await server.someone_listens(f"worker/{worker.worker_id}")
            server.service.stop_waiting()
            answers = await asyncio.gather(*asking)
    assert {answer.status_code for answer in answers} == {204}
    told = [int(answer.headers.get("Retry-After", "0")) for answer in answers]
    assert 0 < max(told) < 50
    assert len(set(told)) > 2


async def test_a_wait_that_ends_by_itself_says_nothing_of_coming_back(server):
    worker = await server.enrol("worker")
    answer = await worker.ask(wait_s=0)
    assert answer.status_code == 204
    assert "Retry-After" not in answer.headers
    assert answer.headers["Next-Wait"] == str(round(USUAL_WAIT_S))


# --- how long to wait the next time ------------------------------------------------------------


@pytest.mark.parametrize("waiting", [0, 1, 10 * RETURNS_AT_REST_PER_S])
def test_a_few_come_back_as_often_as_ever(waiting):
    pace, _ = a_pace(waiting)
    assert {pace.next_wait_s() for _ in range(100)} == {USUAL_WAIT_S}


@pytest.mark.parametrize("waiting", [500, 1_000, 3_000])
def test_however_many_wait_about_as_many_return_each_second(waiting):
    pace, _ = a_pace(waiting)
    waits_s = [pace.next_wait_s() for _ in range(1000)]
    returns_per_s = waiting * sum(1 / wait_s for wait_s in waits_s) / len(waits_s)
    assert 0.8 * RETURNS_AT_REST_PER_S < returns_per_s < 1.3 * RETURNS_AT_REST_PER_S


def test_a_crowd_that_came_together_is_spread_over_as_long_as_it_waits():
    pace, _ = a_pace(waiting=3_000)
    waits_s = [pace.next_wait_s() for _ in range(3_000)]
    assert min(waits_s) < 200
    assert max(waits_s) > 550
    assert max(waits_s.count(second) for second in range(180, 560)) < 4 * RETURNS_AT_REST_PER_S


def test_nobody_is_advised_to_wait_longer_than_the_server_lets_it():
    for max_wait_s, advised_s in [(600, 600), (45.5, 45), (10, 10), (0.5, 0)]:
        pace, _ = a_pace(waiting=100_000, max_wait_s=max_wait_s)
        assert {pace.next_wait_s() for _ in range(100)} == {advised_s}


async def test_who_has_waited_in_vain_among_many_is_told_to_wait_longer(server):
    worker = await server.enrol("worker")
    with contextlib.ExitStack() as others:
        for _ in range(1_600):
            others.enter_context(server.service.pace.waiting())
        answer = await worker.ask(wait_s=0)
    assert 100 <= int(answer.headers["Next-Wait"]) <= 300


async def test_a_server_that_lets_nobody_wait_for_a_second_advises_nothing(start_server):
    server = await start_server(max_wait_s=0.5)
    worker = await server.enrol("worker")
    assert "Next-Wait" not in (await worker.ask(wait_s=60)).headers
