# SPDX-License-Identifier: Apache-2.0
"""What the worker's client takes from a server, and what it refuses."""

import asyncio
import json
import math
import socket
import struct
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress

import httpx
import numpy as np
import pytest
import uvloop

from fed_sophia.interruptible import NewLoop
from protocol.codec import MEDIA_TYPE, PART_MEDIA_TYPE, digest_of, encode_bundle
from protocol.errors import (
    DigestMismatch,
    FedSophiaError,
    InvalidUsage,
    MessageTooLarge,
    NotReady,
    RoundClosed,
    ServerUnreachable,
    UnexpectedAnswer,
    every_error,
)
from protocol.messages import Enrolment, Receipt, UpdateHeader, UploadOffer
from ps_service.routes.problems import STATUS
from worker.answers import NothingYet
from worker.client import ServerClient
from worker.credentials import Signer
from worker.download import Download
from worker.retry import LONGEST_RETRY_AFTER_S, RetryAfter, wait_before_retry

BUFFERS = encode_bundle("params", {"w": np.arange(100_000, dtype=np.float32)})
MESSAGE = b"".join(BUFFERS)
DIGEST = digest_of(BUFFERS)
RECEIPT = Receipt(assignment_id="a-1", digest=DIGEST, received_ms=1, outcome="pending")
HEADER = UpdateHeader(
    digest=DIGEST,
    size_bytes=len(MESSAGE),
    bundles=("delta",),
    encodings={"delta": "f32"},
    num_examples=1,
    local_steps=1,
)


class Wire(httpx.AsyncBaseTransport):
    """Hands requests to a function and its answers back, their bodies still to be read."""

    def __init__(self, answer: Callable[[httpx.Request], httpx.Response]) -> None:
        self._answer = answer

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        answer = self._answer(request)
        if not answer.is_closed:
            return answer
        return httpx.Response(
            answer.status_code, headers=answer.headers, stream=httpx.ByteStream(answer.content)
        )


def client_of(answer: Callable[[httpx.Request], httpx.Response], **options: int) -> ServerClient:
    return ServerClient("https://fed.example", Wire(answer), **options)


def problem(
    code: str, status: int = 409, headers: dict[str, str] | None = None, retryable: bool = False
) -> httpx.Response:
    body = {
        "type": "about:blank",
        "title": "t",
        "status": status,
        "detail": "because",
        "code": code,
        "retryable": retryable,
    }
    return httpx.Response(
        status,
        content=json.dumps(body).encode(),
        headers={"Content-Type": "application/problem+json", **(headers or {})},
    )


def tensors(content: bytes) -> httpx.Response:
    return httpx.Response(200, content=content, headers={"Content-Type": MEDIA_TYPE})


@asynccontextmanager
async def listening(
    answer: Callable[[bytes], bytes], requests: list[bytes] | None = None
) -> AsyncIterator[str]:
    """A socket on loopback that reads one request's head, answers these bytes and closes."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if requests is not None:
            requests.append(head)
        writer.write(answer(head))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def one_mebibyte_at_a_time(content: bytes) -> AsyncIterator[bytes]:
    for offset in range(0, len(content), 2**20):
        yield content[offset : offset + 2**20]


# --- downloads ---------------------------------------------------------------------------------


async def test_tensors_arrive_whole_and_cannot_be_written_to():
    async with client_of(lambda request: tensors(MESSAGE)) as client:
        message = await client.fetch_tensors("run-1", Download(DIGEST))
    assert message == MESSAGE
    assert message.readonly


async def test_tensors_with_another_digest_are_refused():
    async with client_of(lambda request: tensors(MESSAGE[:-1] + b"\xff")) as client:
        with pytest.raises(DigestMismatch, match=DIGEST):
            await client.fetch_tensors("run-1", Download(DIGEST))


async def test_a_download_cut_short_may_be_tried_again():
    cut = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(MESSAGE), MESSAGE[:70_000])
    async with listening(lambda head: cut) as url, ServerClient(url) as client:
        with pytest.raises(ServerUnreachable) as refused:
            await client.fetch_tensors("run-1", Download(DIGEST))
    assert refused.value.retryable


async def test_a_download_that_ends_early_without_a_broken_connection_is_noticed_too():
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=MESSAGE[:70_000], headers={"Content-Length": str(len(MESSAGE))})

    async with client_of(answer) as client:
        with pytest.raises(ServerUnreachable, match=f"after 70000 of {len(MESSAGE)} bytes"):
            await client.fetch_tensors("run-1", Download(DIGEST))


async def test_tensors_over_the_limit_are_refused_before_any_memory_is_taken():
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=b"", headers={"Content-Length": str(10**18)})

    async with client_of(answer, max_download_bytes=10**6) as client:
        with pytest.raises(MessageTooLarge, match="at most 1000000"):
            await client.fetch_tensors("run-1", Download(DIGEST))


async def test_tensors_larger_than_the_caller_expects_are_refused_too():
    async with client_of(lambda request: tensors(MESSAGE)) as client:
        assert await client.fetch_tensors("run-1", Download(DIGEST), len(MESSAGE)) == MESSAGE
        with pytest.raises(MessageTooLarge, match=f"at most {len(MESSAGE) - 1}"):
            await client.fetch_tensors("run-1", Download(DIGEST), len(MESSAGE) - 1)


async def test_tensors_of_unknown_length_are_refused():
    async with client_of(
        lambda request: httpx.Response(200, content=one_mebibyte_at_a_time(MESSAGE))
    ) as client:
        with pytest.raises(UnexpectedAnswer, match="Content-Length"):
            await client.fetch_tensors("run-1", Download(DIGEST))


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", STATUS, ids=lambda error: error.code)
async def test_every_code_that_a_server_says_becomes_its_own_error(error: type[FedSophiaError]):
    async with client_of(lambda request: problem(error.code)) as client:
        with pytest.raises(error) as refused:
            await client.declare("a-1", HEADER)
    assert type(refused.value) is error
    assert refused.value.detail == "because"


@pytest.mark.parametrize("error", sorted({*every_error()} - {*STATUS}, key=str), ids=lambda error: error.code)
async def test_a_code_of_the_workers_own_side_is_believed_of_no_server(error: type[FedSophiaError]):
    async with client_of(lambda request: problem(error.code, 500, retryable=True)) as client:
        with pytest.raises(UnexpectedAnswer, match=f"500 {error.code}: because"):
            await client.declare("a-1", HEADER)


async def test_a_code_of_a_newer_server_is_an_unexpected_answer_that_names_it():
    async with client_of(lambda request: problem("brand-new")) as client:
        with pytest.raises(UnexpectedAnswer, match="409 brand-new: because"):
            await client.declare("a-1", HEADER)


async def test_a_code_of_a_newer_server_that_may_be_tried_again_is_and_when_it_says():
    answer = problem("brand-new", 503, {"Retry-After": "7"}, retryable=True)
    async with client_of(lambda request: answer) as client:
        with pytest.raises(ServerUnreachable, match="503 brand-new: because") as refused:
            await client.declare("a-1", HEADER)
    assert refused.value.retryable
    assert isinstance(refused.value.__cause__, RetryAfter)


async def test_retry_after_travels_with_the_error_as_its_cause():
    async with client_of(lambda request: problem("not-ready", 503, {"Retry-After": "7"})) as client:
        with pytest.raises(NotReady) as refused:
            await client.next_assignment("w-1", 30)
    assert isinstance(refused.value.__cause__, RetryAfter)
    assert refused.value.__cause__.wait_s == 7


async def test_nothing_to_do_and_a_time_to_come_back_is_an_error_that_says_when():
    answer = httpx.Response(204, headers={"Retry-After": "7"})
    async with client_of(lambda request: answer) as client:
        with pytest.raises(NotReady) as sent_home:
            await client.next_assignment("w-1", 30)
    assert sent_home.value.retryable
    assert isinstance(sent_home.value.__cause__, RetryAfter)
    assert sent_home.value.__cause__.wait_s == 7


@pytest.mark.parametrize("after", ["0", "", "-1", "soon", "٧", "Fri, 31 Dec 2027 23:59:59 GMT"])
async def test_nothing_to_do_and_no_time_that_is_understood_is_nothing_to_do(after: str):
    answer = httpx.Response(204, headers={"Retry-After": after.encode()})
    async with client_of(lambda request: answer) as client:
        assert await client.next_assignment("w-1", 30) == NothingYet()


@pytest.mark.parametrize(
    ("advice", "next_wait_s"),
    [
        ("250", 250),
        ("", None),
        ("-1", None),
        ("2.5", None),
        ("soon", None),
        ("٧", None),
        ("9" * 400, math.inf),
    ],
)
async def test_nothing_to_do_may_say_how_long_to_wait_the_next_time(advice: str, next_wait_s: float | None):
    answer = httpx.Response(204, headers={"Next-Wait": advice.encode()})
    async with client_of(lambda request: answer) as client:
        assert await client.next_assignment("w-1", 30) == NothingYet(next_wait_s)


async def test_absurd_times_to_come_back_are_understood_as_very_late():
    answer = httpx.Response(204, headers={"Retry-After": "9" * 5000})
    async with client_of(lambda request: answer) as client:
        with pytest.raises(NotReady) as sent_home:
            await client.next_assignment("w-1", 30)
    assert wait_before_retry(sent_home.value, 0, 0.0) == LONGEST_RETRY_AFTER_S


@pytest.mark.parametrize("status", [404, 408, 421, 425, 429, 500, 502, 503, 504])
async def test_an_ingress_that_answers_for_an_absent_server_may_be_tried_again(status: int):
    answer = httpx.Response(status, content=b"<html>", headers={"Retry-After": "3"})
    async with client_of(lambda request: answer) as client:
        with pytest.raises(ServerUnreachable, match=str(status)) as refused:
            await client.declare("a-1", HEADER)
    assert isinstance(refused.value.__cause__, RetryAfter)


async def test_an_ingress_that_takes_no_body_of_this_size_says_what_no_repeating_mends():
    async with client_of(lambda request: httpx.Response(413, content=b"<html>")) as client:
        with pytest.raises(MessageTooLarge):
            await client.send_part(
                "/v1/uploads/u-1", 0, len(MESSAGE), one_mebibyte_at_a_time(MESSAGE), whole=True
            )


@pytest.mark.parametrize("status", [400, 401, 403, 410, 451])
async def test_any_other_refusal_without_a_word_of_ours_is_unexpected(status: int):
    async with client_of(lambda request: httpx.Response(status, content=b"<html>")) as client:
        with pytest.raises(UnexpectedAnswer, match=str(status)):
            await client.declare("a-1", HEADER)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"\xff"])
async def test_a_problem_without_a_code_is_an_unexpected_answer(body: bytes):
    answer = httpx.Response(409, content=body, headers={"Content-Type": "application/problem+json"})
    async with client_of(lambda request: answer) as client:
        with pytest.raises(UnexpectedAnswer, match="409"):
            await client.declare("a-1", HEADER)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"kind": "dance"}'])
async def test_an_assignment_that_is_none_is_an_unexpected_answer(body: bytes):
    async with client_of(lambda request: httpx.Response(200, content=body)) as client:
        with pytest.raises(UnexpectedAnswer, match="assignment"):
            await client.next_assignment("w-1", 30)


async def test_endless_json_is_refused_after_four_mebibytes():
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 2**20
            yield b" " * 2**20

    async with client_of(lambda request: httpx.Response(200, content=endless())) as client:
        with pytest.raises(UnexpectedAnswer, match="bytes of JSON"):
            await client.declare("a-1", HEADER)
    assert taken == 5 * 2**20


async def test_a_server_that_is_away_may_be_tried_again():
    async with listening(lambda head: b"") as url:
        pass  # the port is closed again
    async with ServerClient(url) as client:
        with pytest.raises(ServerUnreachable):
            await client.next_assignment("w-1", 30)


async def test_a_server_that_hangs_up_without_a_word_may_be_tried_again():
    async with listening(lambda head: b"") as url, ServerClient(url) as client:
        with pytest.raises(ServerUnreachable):
            await client.next_assignment("w-1", 30)


# --- credentials -------------------------------------------------------------------------------


async def test_a_redirect_is_refused_and_nothing_reaches_where_it_points():
    seen_elsewhere: list[bytes] = []
    async with listening(lambda head: b"", seen_elsewhere) as elsewhere:

        def redirect(head: bytes) -> bytes:
            return b"HTTP/1.1 307 Away\r\nLocation: %b/\r\nContent-Length: 0\r\n\r\n" % elsewhere.encode()

        async with listening(redirect) as url, ServerClient(url) as client:
            with pytest.raises(UnexpectedAnswer, match="307: redirects are not followed"):
                await client.next_assignment("w-1", 30)
    assert seen_elsewhere == []


@pytest.mark.parametrize(
    "upload_url",
    ["https://evil.example/v1/uploads/1", "//evil.example/v1/uploads/1", "v1/uploads/1", "", "http:/x"],
)
async def test_an_upload_address_that_is_no_path_of_this_server_is_refused(upload_url: str):
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, content=RECEIPT.model_dump_json())

    async with client_of(answer) as client:
        with pytest.raises(UnexpectedAnswer, match="a path on this server"):
            await client.send_part(upload_url, 0, len(MESSAGE), one_mebibyte_at_a_time(MESSAGE), whole=True)
    assert asked == []


@pytest.mark.parametrize("upload_url", ["/v1/\n", "/" + "a" * 70_000], ids=["a line's end", "very long"])
async def test_an_upload_address_that_is_no_address_is_refused(upload_url: str):
    async with client_of(lambda request: httpx.Response(200)) as client:
        with pytest.raises(UnexpectedAnswer, match="an address that is none"):
            await client.send_part(upload_url, 0, len(MESSAGE), one_mebibyte_at_a_time(MESSAGE), whole=True)


async def test_enrolment_shows_the_join_token_and_everything_else_an_access_token():
    shown: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        shown.append(request.headers.get("Authorization", "none"))
        if request.url.path == "/v1/workers":
            enrolled = {"worker_id": "w-1", "role": "trainer", "protocol_version": 1, "new_field": 1}
            return httpx.Response(201, json=enrolled)
        if request.url.path == "/v1/workers/w-1/token":
            return httpx.Response(200, json={"access_token": "mine", "expires_s": 900, "new_field": 1})
        return httpx.Response(204)

    async with client_of(answer) as client:
        enrolment = Enrolment(name="mine", public_key="p" * 43, proof="a.b.c", tasks=("digits",))
        enrolled = await client.enrol("join-token", enrolment)
        client.authenticate(Signer("k" * 43, "0123456789abcdef"), enrolled.worker_id)
        assert await client.next_assignment(enrolled.worker_id, 30) == NothingYet()
    assert shown == ["Bearer join-token", "none", "Bearer mine"]


@pytest.mark.parametrize("url", ["fed.example", "ftp://fed.example", "https://", "https://me:pw@fed.example"])
async def test_an_address_that_is_not_a_servers_is_refused_without_repeating_a_password(url: str):
    with pytest.raises(InvalidUsage) as refused:
        ServerClient(url)
    assert "pw" not in refused.value.detail


# --- uploads -----------------------------------------------------------------------------------


async def test_a_declared_update_is_sent_whole_with_its_length_and_media_type():
    received: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        received.append(request)
        if request.method == "POST":
            return httpx.Response(201, json={"upload_url": "/v1/uploads/u-1", "offset": 0})
        return httpx.Response(200, content=RECEIPT.model_dump_json())

    async with client_of(answer) as client:
        offer = await client.declare("a-1", HEADER)
        assert isinstance(offer, UploadOffer)
        receipt = await client.send_part(
            offer.upload_url, 0, len(MESSAGE), one_mebibyte_at_a_time(MESSAGE), whole=True
        )

    assert receipt == RECEIPT
    put = received[1]
    assert (put.method, put.url) == ("PATCH", "https://fed.example/v1/uploads/u-1")
    assert put.content == MESSAGE
    assert put.headers["Content-Length"] == str(len(MESSAGE))
    assert put.headers["Content-Type"] == PART_MEDIA_TYPE
    assert (put.headers["Upload-Offset"], put.headers["Upload-Complete"]) == ("0", "?1")
    assert "Transfer-Encoding" not in put.headers


async def test_declaring_what_the_server_holds_already_gives_its_receipt():
    async with client_of(lambda request: httpx.Response(200, content=RECEIPT.model_dump_json())) as client:
        assert await client.declare("a-1", HEADER) == RECEIPT


async def test_a_refused_declaration_is_told_by_its_code():
    async with client_of(lambda request: problem("round-closed")) as client:
        with pytest.raises(RoundClosed):
            await client.declare("a-1", HEADER)


async def test_a_server_behind_a_prefix_is_asked_under_it():
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(200, content=RECEIPT.model_dump_json())

    async with ServerClient("https://fed.example/fl/", Wire(answer)) as client:
        await client.declare("a/1", HEADER)
        await client.send_part(
            "/v1/uploads/u-1", 0, len(MESSAGE), one_mebibyte_at_a_time(MESSAGE), whole=True
        )
    assert asked == [
        "https://fed.example/fl/v1/assignments/a%2F1/update",
        "https://fed.example/fl/v1/uploads/u-1",
    ]


async def test_waiting_for_an_assignment_says_how_long_and_listens_longer():
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(204)

    async with client_of(answer) as client:
        await client.next_assignment("w-1", 30)
    assert seen[0].headers["Prefer"] == "wait=30"
    assert seen[0].extensions["timeout"]["read"] == 45
    assert seen[0].extensions["timeout"]["connect"] == 10


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_connection_that_is_closed_as_it_is_made_leaves_the_server_unreachable(new_loop: NewLoop) -> None:
    """Also where the loop has let its socket go before httpx asks it for the peer."""
    at_once = struct.pack("ii", 1, 0)

    def close_at_once(listener: socket.socket) -> None:
        with suppress(OSError):  # the end of the test
            while True:
                connection, _ = listener.accept()
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
                connection.close()

    async def ask_again_and_again() -> None:
        for _ in range(200):
            async with ServerClient(f"http://127.0.0.1:{port}") as client:
                with pytest.raises(ServerUnreachable):
                    await client.server_ca()

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as executor:
        port = listener.getsockname()[1]
        executor.submit(close_at_once, listener)
        try:
            with asyncio.Runner(loop_factory=new_loop) as runner:
                runner.run(ask_again_and_again())
        finally:
            listener.shutdown(socket.SHUT_RDWR)
