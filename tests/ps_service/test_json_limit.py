# SPDX-License-Identifier: Apache-2.0
"""A body that is no tensor message is bounded before anything reads it."""

import pytest

from protocol.codec import MEDIA_TYPE
from ps_service.limits import SHORT_BYTES

LIMIT = 2_000


@pytest.fixture
async def small_server(start_server):
    return await start_server(max_json_bytes=LIMIT)


@pytest.mark.parametrize("media_type", ["application/json", "text/plain", MEDIA_TYPE, MEDIA_TYPE.upper()])
@pytest.mark.parametrize("path", ["/v1/workers", "/v1/runs", "/v1/nothing"])
async def test_a_longer_body_is_refused_whatever_it_calls_itself(small_server, path, media_type):
    async def endless():
        """Ends the test, not the server, should nobody stop reading."""
        for _ in range(1_000):
            read.append(1)
            yield b" " * 100

    read = []
    answer = await small_server.client().post(path, content=endless(), headers={"Content-Type": media_type})
    assert (answer.status_code, answer.json()["code"]) == (413, "message-too-large")
    assert len(read) <= LIMIT / 100 + 2


async def test_a_body_up_to_the_limit_is_read(small_server):
    body = b'{"uses": 1}'.ljust(LIMIT)
    for extra, status in ((b"", 201), (b" ", 413)):
        answer = await small_server.operator.post(
            "/v1/tokens", content=body + extra, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == status


async def test_what_is_refused_for_its_length_is_counted(small_server):
    await small_server.client().post("/v1/workers", content=b" " * (LIMIT + 1))
    text = (await small_server.operator.get("/metrics")).text
    assert 'fed_sophia_refusals_total{code="message-too-large"} 1.0' in text


async def test_tensor_messages_have_a_limit_of_their_own(small_server):
    await small_server.store_params({"w": (LIMIT,)})


@pytest.mark.parametrize("path", ["/v1/workers", "/v1/tokens", "/v1/workers/w-1/heartbeat"])
async def test_only_specs_and_histories_may_be_long(server, path):
    body = b"{" + b" " * SHORT_BYTES + b"}"
    answer = await server.operator.post(path, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (413, "message-too-large")
    assert "FED_SOPHIA" not in answer.json()["detail"]
    for long in ("/v1/runs", "/v1/runs/import"):
        answer = await server.operator.post(long, content=body, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid-message")


@pytest.mark.parametrize("path", ["/v1/runs", "/v1/runs/import"])
async def test_only_operators_may_send_them(server, path):
    async def much():
        for _ in range(1_000):
            read.append(1)
            yield b" " * 1_000

    worker = await server.enrol("worker")
    for client in (server.client(), server.client("fso_" + "g" * 43), server.client(await worker.token())):
        read = []
        answer = await client.post(path, content=much(), headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["code"]) == (413, "message-too-large")
        assert len(read) <= SHORT_BYTES / 1_000 + 2
