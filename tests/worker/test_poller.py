# SPDX-License-Identifier: Apache-2.0
"""How long a worker asks the server to let it wait."""

import asyncio
import itertools

import httpx
import pytest

from protocol.errors import ServerUnreachable
from worker.client import ServerClient
from worker.poller import LONGEST_S, SHORT_S, Poller, Waits, advised, answered, interrupted


def test_the_server_s_advice_is_followed_within_limits():
    for advice_s, next_s in [(None, 30), (0, 30), (29, 30), (250, 250), (600, 600), (1e9, 600)]:
        assert advised(Waits(), 30, advice_s).next_s == next_s


def test_a_long_wait_that_was_cut_off_is_followed_by_a_short_one_and_that_by_a_long_one():
    waits = interrupted(Waits(250), waited_s=60)
    assert waits.next_s == SHORT_S
    assert advised(waits, 30, 250).next_s == 250


def test_two_long_waits_that_were_cut_off_make_all_that_follow_short():
    waits = Waits(250)
    for _ in range(2):
        waits = advised(interrupted(waits, waited_s=60), 30, 250)
    for _ in range(100):
        assert waits.next_s == SHORT_S
        waits = advised(waits, 30, 250)


def test_a_long_wait_that_came_to_its_end_makes_up_for_one_that_did_not():
    waits = Waits(250)
    for _ in range(10):  # a server that dies now and then is no proxy that cuts
        waits = interrupted(waits, waited_s=100)
        waits = advised(advised(waits, 30, 250), 250, 250)
        assert waits.next_s == 250


def test_a_long_wait_that_brought_something_makes_up_for_one_that_did_not():
    for _ in range(10):
        waits = interrupted(Waits(250), waited_s=100)
        waits = advised(waits, 30, 250)
        waits = answered(waits, waited_s=200)
        assert not interrupted(waits, waited_s=100).short_for_good
    assert interrupted(answered(advised(interrupted(Waits(250), 100), 30, 250), 5), 100).short_for_good


def test_a_short_wait_that_was_answered_late_says_nothing_of_long_ones():
    waits = interrupted(Waits(250), waited_s=60)
    waits = advised(waits, waited_s=30.2, advice_s=250)
    assert interrupted(waits, waited_s=60).short_for_good


@pytest.mark.parametrize("waited_s", [0.0, 1.0, 30.0, 30.2])
def test_a_server_that_is_away_says_nothing_of_how_long_the_way_bears(waited_s: float):
    waits = Waits()
    for _ in range(100):
        waits = interrupted(waits, waited_s)
    assert advised(waits, 30, LONGEST_S).next_s == LONGEST_S


class Proxy(httpx.AsyncBaseTransport):
    """A way to a server that advises 250 s, on which silence of a minute is cut off; time is a number."""

    def __init__(self, cuts_after_s: float, cut: httpx.Response | httpx.TransportError) -> None:
        self.now_s = 0.0
        self.asked_s: list[float] = []
        self._cuts_after_s = cuts_after_s
        self._cut = cut

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        wait_s = float(request.headers["Prefer"].removeprefix("wait="))
        self.asked_s.append(wait_s)
        self.now_s += min(wait_s, self._cuts_after_s)
        if wait_s <= self._cuts_after_s:
            return httpx.Response(204, headers={"Next-Wait": "250"}, stream=httpx.ByteStream(b""))
        if isinstance(self._cut, httpx.TransportError):
            raise self._cut
        return httpx.Response(self._cut.status_code, stream=httpx.ByteStream(b"<html>"))


@pytest.mark.parametrize(
    "cut",
    [
        httpx.Response(504),
        httpx.Response(502),
        httpx.RemoteProtocolError("the connection was closed"),
        httpx.ReadError("the connection broke"),
        httpx.ReadTimeout("nothing came"),
    ],
    ids=["504", "502", "closed", "broken", "silent"],
)
async def test_a_worker_behind_a_proxy_that_cuts_long_waits_comes_to_ask_for_short_ones(
    cut: httpx.Response | httpx.TransportError,
):
    proxy = Proxy(60, cut)
    async with asyncio.timeout(10), ServerClient("https://fed.example", proxy) as client:
        poller = Poller(client, "w-1", lambda: proxy.now_s)
        failures = 0
        for _ in range(20):
            try:
                assert await poller.ask() is None
            except ServerUnreachable:
                failures += 1
    assert proxy.asked_s[:5] == [30, 250, 30, 250, 30]
    assert set(proxy.asked_s[5:]) == {30}
    assert failures == 2


async def test_a_worker_whose_way_bears_them_waits_as_long_as_it_is_advised():
    proxy = Proxy(1e9, httpx.Response(504))
    async with asyncio.timeout(10), ServerClient("https://fed.example", proxy) as client:
        poller = Poller(client, "w-1", lambda: proxy.now_s)
        for _ in itertools.repeat(None, 10):
            assert await poller.ask() is None
    assert proxy.asked_s == [30] + [250] * 9
