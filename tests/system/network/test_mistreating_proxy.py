# SPDX-License-Identifier: Apache-2.0
"""The proxy itself: what it is told to do to a request is what happens to it, and to no byte more."""

import asyncio
import time
from collections.abc import AsyncIterator

import h11
import httpx
import pytest

from tests.system.network.faults import UNHARMED, Behind, Fault, Kind, Plan, Stall, Twice, on_route
from tests.system.network.mistreating_proxy import MistreatingProxy
from tests.system.network.peer import Cut, Peer

BODY = bytes(range(256)) * 400
ECHO = "POST /v1/echo"


class EchoServer:
    """Answers every request with its own body, and remembers what reached it."""

    def __init__(self) -> None:
        self.port = 0
        self.received: list[bytearray] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer, we_are=h11.SERVER)
        try:
            while await peer.head():
                body = bytearray()
                self.received.append(body)
                async for piece in peer.body():
                    body += piece
                await peer.send(h11.Response(status_code=200, headers=[("Content-Length", str(len(body)))]))
                await peer.send(h11.Data(data=bytes(body)))
                await peer.send(h11.EndOfMessage())
                if not peer.is_ready_for_more():
                    break
        except Cut:
            pass
        finally:
            await peer.closed()


@pytest.fixture
async def echo() -> AsyncIterator[EchoServer]:
    server = EchoServer()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    yield server
    listener.close()


async def said_through(
    echo: EchoServer, plan: Plan, times: int = 1
) -> tuple[MistreatingProxy, list[bytes | None]]:
    """Send the body so many times, one by one; give what was heard, None for a broken answer."""
    heard: list[bytes | None] = []
    async with MistreatingProxy(echo.port, plan) as proxy, httpx.AsyncClient(base_url=proxy.url) as client:
        for _ in range(times):
            try:
                heard.append((await client.post("/v1/echo", content=BODY)).content)
            except httpx.TransportError:
                heard.append(None)
        await asyncio.wait_for(_quiet(proxy), 10)
    return proxy, heard


async def _quiet(proxy: MistreatingProxy) -> None:
    while any(exchange.ended_s is None for exchange in proxy.exchanges):
        await asyncio.sleep(0.01)


async def test_an_unharmed_request_passes_as_it_is_over_one_connection_after_another(
    echo: EchoServer,
) -> None:
    proxy, heard = await said_through(echo, lambda _: UNHARMED, times=3)
    assert heard == [BODY, BODY, BODY]
    assert echo.received == [BODY, BODY, BODY]
    assert [exchange.sent_bytes for exchange in proxy.on(ECHO)] == [len(BODY)] * 3
    assert not proxy.applied


@pytest.mark.parametrize("at", [0, 1, 70_000, len(BODY) - 1])
async def test_a_cut_request_reaches_the_server_up_to_the_byte_and_the_next_one_passes(
    echo: EchoServer, at: int
) -> None:
    proxy, heard = await said_through(echo, on_route(ECHO, Fault(cut_request_at=at)), times=2)
    assert heard == [None, BODY]
    assert [len(body) for body in echo.received] == [at, len(BODY)]
    assert proxy.applied == {Kind.REQUEST_CUT: 1}


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault(lose_answer=True), Kind.ANSWER_LOST),
        (Fault(cut_answer_at=70_000), Kind.ANSWER_CUT),
        (Fault(sender_gone=True), Kind.SENDER_GONE),
    ],
)
async def test_where_the_answer_is_lost_the_server_has_the_whole_request_and_the_sender_hears_nothing_whole(
    echo: EchoServer, fault: Fault, kind: Kind
) -> None:
    proxy, heard = await said_through(echo, on_route(ECHO, fault), times=2)
    assert heard == [None, BODY]
    assert echo.received == [BODY, BODY]
    assert proxy.applied == {kind: 1}
    assert [exchange.heard for exchange in proxy.on(ECHO)] == [False, True]


@pytest.mark.parametrize(
    ("fault", "at_least_s", "kinds"),
    [
        (Fault(delay_s=0.3), 0.3, {Kind.DELAYED}),
        (Fault(up_bytes_per_s=512_000), 0.2, {Kind.SLOW_UP}),
        (Fault(down_bytes_per_s=512_000), 0.2, {Kind.SLOW_DOWN}),
        (Fault(stall=Stall(70_000, 0.3)), 0.3, {Kind.STALLED}),
        (Fault(stall=Stall(20_000, 0.1, every=True)), 0.5, {Kind.STALLED}),
        (Fault(up_bytes_per_s=512_000, stall=Stall(70_000, 0.3)), 0.5, {Kind.SLOW_UP, Kind.STALLED}),
    ],
)
async def test_what_is_slow_takes_its_time_and_arrives(
    echo: EchoServer, fault: Fault, at_least_s: float, kinds: set[Kind]
) -> None:
    began_s = time.monotonic()
    proxy, heard = await said_through(echo, on_route(ECHO, fault))
    assert time.monotonic() - began_s >= at_least_s
    assert heard == [BODY]
    assert set(proxy.applied) == kinds


@pytest.mark.parametrize("twice", list(Twice))
async def test_what_is_sent_twice_reaches_the_server_twice_and_is_heard_once(
    echo: EchoServer, twice: Twice
) -> None:
    proxy, heard = await said_through(echo, on_route(ECHO, Fault(twice=twice)))
    assert heard == [BODY]
    assert echo.received == [BODY, BODY]
    assert [exchange.is_copy for exchange in proxy.on(ECHO)].count(True) == 1
    assert proxy.applied.total() == 1


async def test_a_request_held_behind_the_next_arrives_after_it_although_its_sender_is_gone(
    echo: EchoServer,
) -> None:
    held = Fault(sender_gone=True, behind=Behind(ECHO, at_most_s=10))
    proxy, heard = await said_through(echo, on_route(ECHO, held), times=2)
    assert heard == [None, BODY]
    assert [exchange.request.ordinal for exchange in proxy.on(ECHO)] == [2, 1]
    assert proxy.applied == {Kind.SENDER_GONE: 1, Kind.OVERTAKEN: 1}


async def test_a_replay_comes_after_as_many_others_as_were_asked_for(echo: EchoServer) -> None:
    proxy, heard = await said_through(echo, on_route(ECHO, Fault(replay=Behind(ECHO, more=2))), times=4)
    assert heard == [BODY] * 4
    order = [(exchange.request.ordinal, exchange.is_copy) for exchange in proxy.on(ECHO)]
    assert order.index((1, True)) >= 3
    assert proxy.applied == {Kind.REPLAYED: 1}


async def test_what_waits_for_a_request_that_never_comes_goes_on_in_the_end(
    echo: EchoServer,
) -> None:
    proxy, heard = await said_through(echo, on_route(ECHO, Fault(behind=Behind(ECHO, at_most_s=0.1))))
    assert heard == [BODY]
    assert not proxy.applied
