# SPDX-License-Identifier: Apache-2.0
"""Threads that share work: taken in order, in bounded memory, and gone however the call ends."""

import threading
from contextvars import ContextVar

import pytest

from ps_service.in_order import AHEAD, in_order

ANY_THREADS = pytest.mark.parametrize("threads", [0, 1, 2, 5])
IN_THREADS = pytest.mark.parametrize("threads", [1, 2, 5])
WAIT_S = 10.0


class Failing(Exception):
    """What goes wrong in these tests."""


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("in-order")]


def same(item):
    return item


@ANY_THREADS
@pytest.mark.parametrize("count", [0, 1, 3, 100])
def test_what_is_made_is_taken_in_the_order_of_the_items(threads, count):
    taken = []
    in_order(range(count), lambda item: item * item, taken.append, threads)
    assert taken == [item * item for item in range(count)]


def test_what_is_made_first_waits_for_what_comes_before_it():
    second_is_made, taken = threading.Event(), []

    def make(item):
        if item == 0:
            assert second_is_made.wait(WAIT_S), "the second thread must not wait for the first"
        else:
            second_is_made.set()
        return item

    in_order(range(2), make, taken.append, 2)
    assert taken == [0, 1]


@IN_THREADS
def test_only_so_many_items_are_begun_and_not_taken(threads):
    lock, begun, most = threading.Lock(), set(), []

    def make(item):
        with lock:
            begun.add(item)
            most.append(len(begun))
        return item

    def take(item):
        with lock:
            begun.remove(item)

    in_order(range(200), make, take, threads)
    assert max(most) <= threads + AHEAD


@ANY_THREADS
def test_all_is_taken_by_whoever_called(threads):
    takers = set()
    in_order(range(9), same, lambda _: takers.add(threading.current_thread()), threads)
    assert takers == {threading.current_thread()}


@ANY_THREADS
def test_what_the_context_holds_is_the_callers(threads):
    word, found = ContextVar("word"), []
    word.set("swordfish")
    in_order(range(3), lambda _: word.get(), found.append, threads)
    assert found == ["swordfish"] * 3


@ANY_THREADS
def test_the_first_error_in_order_is_raised_and_nothing_is_taken_behind_it(threads):
    taken, made = [], []

    def make(item):
        made.append(item)
        if item in (3, 4):
            raise Failing(str(item))
        return item

    with pytest.raises(Failing, match="3"):
        in_order(range(1000), make, taken.append, threads)
    assert taken == [0, 1, 2]
    assert len(made) <= 3 + 1 + threads + AHEAD


@ANY_THREADS
@pytest.mark.parametrize("error", [Failing, KeyboardInterrupt])
def test_an_error_of_whoever_takes_ends_the_work(threads, error):
    made = []

    def take(item):
        if item == 2:
            raise error

    with pytest.raises(error):
        in_order(range(1000), lambda item: made.append(item) or item, take, threads)
    assert len(made) <= 3 + threads + AHEAD


@ANY_THREADS
def test_an_error_of_the_items_ends_the_work(threads):
    def items():
        yield 0
        raise Failing

    with pytest.raises(Failing):
        in_order(items(), same, same, threads)
