# SPDX-License-Identifier: Apache-2.0
"""A worker's access tokens: had by signing, renewed in time, by the server's clock where its own is off."""

import asyncio
from dataclasses import dataclass, field

import httpx
import pytest

from protocol.assertions import Purpose, public_key_of, read
from protocol.errors import ClockSkewed, ServerUnreachable, Unauthenticated
from protocol.messages import AccessToken, Heartbeat
from tests.worker.small_server import JOIN_TOKEN, TOKEN_LIFE_S, SmallServer, a_server, in_turn, problem
from worker.client import ServerClient
from worker.credentials import Credentials, Signer
from worker.patience import Pauses, persistently

KEY = "k" * 43
NOW_S = 1_800_000_000
SERVER_ID = JOIN_TOKEN.server_id


@dataclass
class Clock:
    """Time that passes when told to."""

    now_s: float = NOW_S

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Exchange:
    """Gives a new token for each assertion, as one does that is sure of its worker."""

    life_s: int = 1000
    given: list[AccessToken] = field(default_factory=list)
    answers_after: asyncio.Event | None = None

    async def __call__(self, assertion: str) -> AccessToken:
        number = len(self.given) + 1
        read(assertion, public_key_of(KEY), Purpose.TOKEN, "w-1", SERVER_ID, NOW_S * 1000)
        self.given.append(AccessToken(access_token=f"token-{number}", expires_s=self.life_s))
        if self.answers_after is not None:
            await self.answers_after.wait()
        return self.given[-1]


def a_server_with(key: str) -> SmallServer:
    """A server that knows this worker."""
    server = a_server()
    server.key = public_key_of(key)
    server.clock_ms = lambda: NOW_S * 1000
    return server


def a_signer(clock_s: Clock | None = None) -> Signer:
    return Signer(KEY, SERVER_ID, clock_s or Clock())


async def test_a_token_is_renewed_after_four_fifths_of_its_life_and_not_before():
    clock, exchange = Clock(0.0), Exchange(life_s=1000)
    credentials = Credentials(a_signer(), "w-1", exchange, clock)

    assert await credentials.token() == "token-1"
    clock.now_s = 799.9
    assert await credentials.token() == "token-1"
    clock.now_s = 800.0
    assert await credentials.token() == "token-2"
    clock.now_s = 1599.9
    assert await credentials.token() == "token-2"


async def test_many_requests_at_the_same_time_share_one_exchange():
    exchange = Exchange(answers_after=asyncio.Event())
    credentials = Credentials(a_signer(), "w-1", exchange)
    asking = [asyncio.create_task(credentials.token()) for _ in range(20)]
    while not exchange.given:
        await asyncio.sleep(0)
    assert exchange.answers_after is not None
    exchange.answers_after.set()

    assert set(await asyncio.gather(*asking)) == {"token-1"}
    assert len(exchange.given) == 1


async def test_a_request_that_is_given_up_while_it_asks_for_a_token_holds_up_no_other():
    exchange = Exchange(answers_after=asyncio.Event())
    credentials = Credentials(a_signer(), "w-1", exchange)
    given_up = asyncio.create_task(credentials.token())
    while not exchange.given:
        await asyncio.sleep(0)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    assert exchange.answers_after is not None
    exchange.answers_after.set()

    async with asyncio.timeout(10):
        assert await credentials.token() == "token-2"


async def test_a_token_that_was_refused_when_it_had_been_renewed_already_costs_no_other():
    clock, exchange = Clock(0.0), Exchange(life_s=1000)
    credentials = Credentials(a_signer(), "w-1", exchange, clock)
    await credentials.token()
    clock.now_s = 800.0
    await credentials.token()

    credentials.refused("token-1")

    assert await credentials.token() == "token-2"


async def test_a_token_that_is_taken_no_more_is_replaced_when_the_request_is_repeated():
    server, told = a_server_with(KEY), []
    async with ServerClient("http://fed.example", server) as client:
        client.authenticate(a_signer(), "w-1")
        await client.heartbeat("w-1", Heartbeat())
        server.tokens.clear()

        async def at_once(_wait_s: float) -> None:
            """No test waits for a pause."""

        pauses = Pauses(sleep=at_once, jitter=lambda: 0.5)
        await persistently(lambda: client.heartbeat("w-1", Heartbeat()), "mine", told.append, pauses)

    assert server.asked == ["token", "heartbeat", "heartbeat", "token", "heartbeat"]
    assert ["another is asked for" in event.detail for event in told] == [True]


async def test_a_refused_token_may_be_tried_again_and_a_refused_worker_may_not():
    server = a_server_with(KEY)
    async with ServerClient("http://fed.example", server) as client:
        client.authenticate(a_signer(), "w-1")
        await client.heartbeat("w-1", Heartbeat())
        server.forget()
        with pytest.raises(ServerUnreachable):
            await client.heartbeat("w-1", Heartbeat())
        with pytest.raises(Unauthenticated):
            await client.heartbeat("w-1", Heartbeat())


async def test_requests_of_one_client_at_the_same_time_sign_once():
    server = a_server_with(KEY)
    async with ServerClient("http://fed.example", server) as client:
        client.authenticate(a_signer(), "w-1")
        await asyncio.gather(*(client.heartbeat("w-1", Heartbeat()) for _ in range(8)))

    assert server.asked.count("token") == 1
    assert server.asked.count("heartbeat") == 8


@pytest.mark.parametrize("off_s", [-40 * 365 * 86_400, -3600, 3600, 10 * 365 * 86_400])
async def test_a_device_whose_clock_is_off_signs_by_the_servers(off_s: int):
    server, clock = a_server_with(KEY), Clock(NOW_S + off_s)
    signer = a_signer(clock)
    async with ServerClient("http://fed.example", server) as client:
        client.authenticate(signer, "w-1")
        await client.heartbeat("w-1", Heartbeat())
        clock.now_s += TOKEN_LIFE_S
        server.clock_ms = lambda: (NOW_S + TOKEN_LIFE_S) * 1000
        client.authenticate(signer, "w-1")
        await client.heartbeat("w-1", Heartbeat())

    assert server.asked == ["token", "token", "heartbeat", "token", "heartbeat"], "it is told once"


@pytest.mark.parametrize("off_s", [-100, 0, 60])
async def test_a_device_whose_clock_is_off_by_less_than_the_leeway_is_not_corrected(off_s: int):
    server = a_server_with(KEY)
    async with ServerClient("http://fed.example", server) as client:
        client.authenticate(a_signer(Clock(NOW_S + off_s)), "w-1")
        await client.heartbeat("w-1", Heartbeat())
    assert server.asked == ["token", "heartbeat"]


async def test_a_server_that_takes_no_time_for_the_right_one_is_asked_twice_and_no_more():
    server = a_server_with(KEY)
    skewed = [problem("clock-skewed", 401, server_ms=NOW_S * 1000) for _ in range(2)]
    server.before["token"] = in_turn(*skewed)
    async with ServerClient("http://fed.example", server) as client:
        client.authenticate(a_signer(), "w-1")
        with pytest.raises(ClockSkewed):
            await client.heartbeat("w-1", Heartbeat())
    assert server.asked == ["token", "token"]


async def test_a_server_that_does_not_say_what_time_it_is_is_asked_once():
    server = a_server_with(KEY)
    server.before["token"] = in_turn(problem("clock-skewed", 401))
    async with ServerClient("http://fed.example", server) as client:
        client.authenticate(a_signer(), "w-1")
        with pytest.raises(ClockSkewed) as refused:
            await client.heartbeat("w-1", Heartbeat())
    assert refused.value.server_ms is None
    assert server.asked == ["token"]


async def test_the_request_for_a_token_shows_nothing_but_what_was_signed():
    shown: list[str | None] = []

    class Listening(SmallServer):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            shown.append(request.headers.get("Authorization"))
            return await super().handle_async_request(request)

    server = Listening([], {}, key=public_key_of(KEY), clock_ms=lambda: NOW_S * 1000)
    async with ServerClient("http://fed.example", server) as client:
        client.authenticate(a_signer(), "w-1")
        await client.heartbeat("w-1", Heartbeat())
    assert shown == [None, f"Bearer {next(iter(server.tokens))}"]
