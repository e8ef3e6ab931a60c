# SPDX-License-Identifier: Apache-2.0
"""A worker's way past the server shows nothing of its own, and what fails there goes through the server."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from protocol.errors import MessageTooLarge, ServerUnreachable
from protocol.messages import Receipt, StoreRequest, UpdateHeader
from worker.client import ServerClient
from worker.download import Download
from worker.downloader import Downloader
from worker.store_client import StoreClient
from worker.uploader import Uploader

MESSAGE = bytes(range(256)) * 1000
DIGEST = hashlib.sha256(MESSAGE).hexdigest()
ADDRESS = "https://store.example/bucket/key?signature=1"
SIGNED = StoreRequest(
    url=ADDRESS, headers={"x-amz-checksum-sha256": "c", "Content-Length": str(len(MESSAGE))}
)
HEADER = UpdateHeader(
    digest=DIGEST, size_bytes=len(MESSAGE), bundles=("delta",), encodings={"delta": "f32"}, num_examples=1,
    local_steps=1,
)  # fmt: skip
RECEIPT = Receipt(assignment_id="a-1", digest=DIGEST, received_ms=1, outcome="pending")


class Store(httpx.AsyncBaseTransport):
    """Answers what it is told to, and keeps what came."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.bodies: list[bytes] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.bodies.append(await request.aread())
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(
            answer.status_code, headers=answer.headers, stream=httpx.ByteStream(answer.content)
        )


async def pieces(message: bytes = MESSAGE) -> AsyncIterator[bytes]:
    yield message[:1000]
    yield message[1000:]


def whole() -> httpx.Response:
    return httpx.Response(200, content=MESSAGE)


async def put(store: Store, request: StoreRequest = SIGNED, server_url: str = "https://fed.example") -> bool:
    async with StoreClient(server_url, transport=store) as client:
        return await client.put(request, len(MESSAGE), pieces())


async def get(store: Store, download: Download | None = None, address: str = ADDRESS) -> memoryview | None:
    async with StoreClient("https://fed.example", transport=store) as client:
        return await client.get(address, download or Download(DIGEST))


async def test_a_body_goes_with_the_headers_that_sign_it_and_no_credential() -> None:
    store = Store(httpx.Response(200))
    assert await put(store)
    [request] = store.requests
    assert (request.method, str(request.url)) == ("PUT", ADDRESS)
    assert store.bodies == [MESSAGE]
    assert request.headers["x-amz-checksum-sha256"] == "c"
    assert request.headers["content-length"] == str(len(MESSAGE))
    assert "authorization" not in request.headers
    assert "transfer-encoding" not in request.headers


@pytest.mark.parametrize("status", [307, 400, 403, 500, 503])
async def test_a_store_that_does_not_take_it_is_told_from_one_that_does(status: int) -> None:
    store = Store(httpx.Response(status, headers={"Location": "https://other.example/"}))
    assert not await put(store)
    assert len(store.requests) == 1, "no redirect is followed"


async def test_nobody_is_asked_at_an_address_or_with_headers_that_no_signed_request_has() -> None:
    store = Store()
    assert not await put(store, StoreRequest(url="http://store.example/key"))
    assert not await put(store, StoreRequest(url=ADDRESS, headers={"Authorization": "Bearer x"}))
    assert not await put(store, StoreRequest(url=ADDRESS, headers={"Host": "metadata.internal"}))
    assert await get(store, address="http://store.example/key") is None
    assert await get(store, address="file:///etc/passwd") is None
    assert not await put(store, StoreRequest(url="https://store.example:99999/key"))
    assert not await put(store, StoreRequest(url=ADDRESS, headers={"x-amz-checksum-sha256": "é"}))
    assert store.requests == []


async def test_what_is_there_already_need_not_be_put() -> None:
    assert await put(Store(httpx.Response(412)))


async def test_beside_a_server_without_tls_the_store_may_do_without_too() -> None:
    plain = StoreRequest(url="http://127.0.0.1:1/key")
    assert await put(Store(httpx.Response(200)), plain, "http://127.0.0.1:2")


async def test_a_message_is_believed_for_its_digest() -> None:
    message = await get(Store(whole()))
    assert message == MESSAGE
    assert message.readonly
    download = Download(DIGEST)
    assert await get(Store(httpx.Response(200, content=MESSAGE[:-1] + b"x")), download) is None
    assert download.received_bytes == 0, "what came is not gone on with"


async def test_a_store_that_cannot_be_reached_is_left_alone_for_a_while() -> None:
    store = Store(httpx.ConnectTimeout("no way there"))
    async with StoreClient("https://fed.example", transport=store) as client:
        for _ in range(3):
            assert not await client.put(SIGNED, len(MESSAGE), pieces())
            assert await client.get(ADDRESS, Download(DIGEST)) is None
    assert len(store.requests) == 1


async def test_what_came_before_the_link_broke_is_gone_on_with() -> None:
    download = Download(DIGEST)
    headers = {"Content-Length": str(len(MESSAGE))}
    assert await get(Store(httpx.Response(200, headers=headers, content=MESSAGE[:5000])), download) is None
    assert download.received_bytes == 5000
    headers = {"Content-Range": f"bytes 5000-{len(MESSAGE) - 1}/{len(MESSAGE)}"}
    store = Store(httpx.Response(206, headers=headers, content=MESSAGE[5000:]))
    assert await get(store, download) == MESSAGE
    assert store.requests[0].headers["Range"] == "bytes=5000-"


async def test_what_is_too_large_is_not_taken() -> None:
    async with StoreClient("https://fed.example", transport=Store(whole())) as client:
        with pytest.raises(MessageTooLarge):
            await client.get(ADDRESS, Download(DIGEST), at_most_bytes=1000)


class Server(Store):
    """A server that takes bodies, too."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/update"):
            put = SIGNED.model_dump()
            self.answers.insert(
                0, httpx.Response(201, json={"upload_url": "/v1/uploads/u-1", "offset": 0, "put": put})
            )
        return await super().handle_async_request(request)

    @property
    def asked(self) -> list[str]:
        return [f"{request.method} {request.url.path}" for request in self.requests]


async def push(server: Server, store: Store, tmp_path: Path) -> Receipt:
    path = tmp_path / "message"
    path.write_bytes(MESSAGE)
    async with (
        ServerClient("http://fed.example", server) as client,
        StoreClient("http://fed.example", transport=store) as past,
    ):
        return await Uploader(client, past).push("a-1", HEADER, path)


DECLARED, TOLD, SENT = (
    "POST /v1/assignments/a-1/update",
    "POST /v1/uploads/u-1/stored",
    "PATCH /v1/uploads/u-1",
)


async def test_an_update_is_put_into_the_store_and_the_server_is_told(tmp_path: Path) -> None:
    server = Server(httpx.Response(200, content=RECEIPT.model_dump_json()))
    store = Store(httpx.Response(200))
    assert await push(server, store, tmp_path) == RECEIPT
    assert (server.asked, store.bodies) == ([DECLARED, TOLD], [MESSAGE])


@pytest.mark.parametrize("answer", [httpx.Response(403), httpx.ConnectError("no way there")])
async def test_an_update_that_the_store_does_not_take_goes_to_the_server(
    tmp_path: Path, answer: httpx.Response | Exception
) -> None:
    server = Server(httpx.Response(200, content=RECEIPT.model_dump_json()))
    assert await push(server, Store(answer), tmp_path) == RECEIPT
    assert server.asked == [DECLARED, SENT]
    assert server.bodies[1] == MESSAGE


def refused(status: int, code: str) -> httpx.Response:
    fields = {"type": "x", "title": "x", "status": status, "detail": "x", "code": code, "retryable": False}
    return httpx.Response(status, json=fields, headers={"Content-Type": "application/problem+json"})


@pytest.mark.parametrize(
    ("status", "code"),
    [(408, "upload-interrupted"), (507, "storage-not-writable"), (422, "digest-mismatch")],
)
async def test_an_update_that_the_server_cannot_use_from_the_store_goes_to_the_server(
    tmp_path: Path, status: int, code: str
) -> None:
    server = Server(refused(status, code), httpx.Response(200, content=RECEIPT.model_dump_json()))
    assert await push(server, Store(httpx.Response(200)), tmp_path) == RECEIPT
    assert server.asked == [DECLARED, TOLD, SENT]


async def test_what_was_put_is_asked_for_before_it_is_put_again(tmp_path: Path) -> None:
    server = Server(httpx.ConnectError("no answer"), httpx.Response(200, content=RECEIPT.model_dump_json()))
    store, path = Store(httpx.Response(200)), tmp_path / "message"
    path.write_bytes(MESSAGE)
    async with (
        ServerClient("http://fed.example", server) as client,
        StoreClient("http://fed.example", transport=store) as past,
    ):
        uploader = Uploader(client, past)
        with pytest.raises(ServerUnreachable):
            await uploader.push("a-1", HEADER, path)
        assert await uploader.push("a-1", HEADER, path) == RECEIPT
    assert server.asked == [DECLARED, TOLD, DECLARED, TOLD]
    assert store.bodies == [MESSAGE]


async def test_damage_from_the_store_is_made_good_by_the_server() -> None:
    headers = {"Content-Length": str(len(MESSAGE))}
    bad = httpx.Response(200, headers=headers, content=b"x" * 100_000)
    rest = httpx.Response(
        206,
        headers={"Content-Range": f"bytes 100000-{len(MESSAGE) - 1}/{len(MESSAGE)}"},
        content=MESSAGE[100_000:],
    )
    elsewhere = httpx.Response(307, headers={"Location": ADDRESS})
    server, store = Store(elsewhere, elsewhere, rest, whole()), Store(bad, httpx.Response(503))
    async with (
        ServerClient("http://fed.example", server) as client,
        StoreClient("http://fed.example", transport=store) as past,
    ):
        assert await Downloader(client, past).fetch("run-1", DIGEST) == MESSAGE
    assert "Range" not in server.requests[-1].headers


async def test_tensors_come_from_the_store_or_else_from_the_server() -> None:
    elsewhere = httpx.Response(307, headers={"Location": ADDRESS})
    for store, asked in ((Store(whole()), 1), (Store(httpx.Response(404)), 2)):
        server = Store(elsewhere, whole())
        async with (
            ServerClient("http://fed.example", server) as client,
            StoreClient("http://fed.example", transport=store) as past,
        ):
            assert await Downloader(client, past).fetch("run-1", DIGEST) == MESSAGE
        assert len(server.requests) == asked
        assert server.requests[0].headers["Prefer"] == "presigned"
        assert "Prefer" not in server.requests[-1].headers or asked == 1
