# SPDX-License-Identifier: Apache-2.0
"""A worker tells the server what it trains on, once it knows, and never for its work's sake."""

import asyncio
import json
from dataclasses import dataclass, field

import httpx
import pytest
import torch

from protocol.errors import FedSophiaError, InvalidTask
from protocol.messages import Heartbeat
from tests.worker.small_server import problem
from worker.client import ServerClient
from worker.credentials import Signer
from worker.introducing import ATTEMPTS, DeviceName, tell_device
from worker.machine import device_name
from worker.patience import Pauses


@dataclass
class Listening(httpx.AsyncBaseTransport):
    """A server that answers heartbeats in turn with these, and then well."""

    answers: list[httpx.Response] = field(default_factory=list)
    heard: list[object] = field(default_factory=list)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/token"):
            answer = httpx.Response(200, json={"access_token": f"fsa_{0:043d}", "expires_s": 900})
        else:
            self.heard.append(json.loads(await request.aread()))
            answer = self.answers.pop(0) if self.answers else httpx.Response(204)
        return httpx.Response(
            answer.status_code, headers=answer.headers, stream=httpx.ByteStream(answer.content)
        )


async def told(server: Listening, name: DeviceName) -> list[float]:
    """Let a worker tell it; give the pauses it made."""
    slept: list[float] = []

    async def sleep(wait_s: float) -> None:
        slept.append(wait_s)
        await asyncio.sleep(0)

    async with ServerClient("http://fed.example", server) as client:
        client.authenticate(Signer("k" * 43, "0123456789abcdef"), "w-1")
        telling = asyncio.ensure_future(
            tell_device(client, "w-1", name, Pauses(sleep=sleep, jitter=lambda: 0.5))
        )
        for _ in range(1000):  # turns of the loop: nothing here takes time
            await asyncio.sleep(0)
        assert not telling.done(), "it goes on beside the work for as long as that lasts"
        telling.cancel()
        await asyncio.wait([telling])
    return slept


async def an_h100() -> str:
    return "NVIDIA H100 80GB HBM3"


async def test_it_is_told_once() -> None:
    server = Listening()
    assert await told(server, an_h100) == []
    assert server.heard == [{"device": "NVIDIA H100 80GB HBM3"}]


async def test_a_server_that_is_not_ready_is_told_again() -> None:
    server = Listening([problem("not-ready", 503), problem("not-ready", 503)])
    assert len(await told(server, an_h100)) == 2
    assert len(server.heard) == 3


async def test_a_server_that_never_hears_is_left_in_peace() -> None:
    server = Listening([problem("not-ready", 503) for _ in range(3 * ATTEMPTS)])
    await told(server, an_h100)
    assert len(server.heard) == ATTEMPTS


@pytest.mark.parametrize(("status", "code"), [(422, "invalid-message"), (403, "worker-revoked")])
async def test_a_server_that_does_not_want_to_hear_it_is_not_asked_again(status: int, code: str) -> None:
    server = Listening([problem(code, status)])
    assert await told(server, an_h100) == []
    assert len(server.heard) == 1


async def test_a_very_long_name_is_cut() -> None:
    async def long() -> str:
        return "x" * 500

    server = Listening()
    await told(server, long)
    assert server.heard == [{"device": "x" * 128}]


@pytest.mark.parametrize("error", [None, InvalidTask("no such task")])
async def test_what_is_not_known_is_not_told(error: FedSophiaError | None) -> None:
    async def unknown() -> str | None:
        if error is not None:
            raise error
        return None

    server = Listening()
    await told(server, unknown)
    assert server.heard == []


async def test_a_heartbeat_says_no_more_than_it_has_to_say() -> None:
    """A server of before knows no `device`, and refuses what it does not know."""
    server = Listening()
    async with ServerClient("http://fed.example", server) as client:
        client.authenticate(Signer("k" * 43, "0123456789abcdef"), "w-1")
        await client.heartbeat("w-1", Heartbeat())
        await client.heartbeat("w-1", Heartbeat(tasks=("digits",)))
    assert server.heard == [{}, {"tasks": ["digits"]}]


def test_a_processor_is_called_by_its_kind() -> None:
    assert device_name(torch.device("cpu")) == "cpu"
    assert device_name(torch.device("mps")) == "mps"
