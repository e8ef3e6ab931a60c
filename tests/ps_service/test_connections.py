# SPDX-License-Identifier: Apache-2.0
"""What comes over a connection before there is a request is bounded, in bytes and in time."""

import asyncio
import json

import pytest
from pydantic import ValidationError

from ps_service.connections import bounded_protocol
from ps_service.settings import Settings

MAX_BYTES = 2_000
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: server\r\n"


class Line:
    """A bare connection to a server."""

    def __init__(self, reader, writer):
        self._reader, self._writer = reader, writer

    async def send(self, data):
        self._writer.write(data)
        await self._writer.drain()

    async def head_and_body(self):
        """One answer: its status and headers, and its body."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length: "))
        return head, await self._reader.readexactly(int(length.partition(b": ")[2]))

    async def closed(self):
        """What came before the server closed the connection."""
        try:
            return await self._reader.read()
        except ConnectionResetError:
            return b""

    def close(self):
        self._writer.close()


@pytest.fixture
async def connect(start_server):
    """Starts a server with these settings and connects: `await connect(header_timeout_s=…)`."""
    lines = []
    async with asyncio.timeout(60):

        async def connect(**settings):
            server = await start_server(**{"max_header_bytes": MAX_BYTES} | settings)
            serving = server.on_a_socket()
            client = await serving.__aenter__()
            line = Line(*await asyncio.open_connection("127.0.0.1", client.base_url.port))
            lines.append((line, serving))
            return line

        yield connect
        for line, serving in lines:
            line.close()
            await serving.__aexit__(None, None, None)


def too_large(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert json.loads(body)["code"] == "headers-too-large"
    return head.startswith(b"HTTP/1.1 431 ")


HEADS = {
    "a long value": HEALTH + b"X: " + b"x" * MAX_BYTES + b"\r\n\r\n",
    "a long name": HEALTH + b"x" * MAX_BYTES + b": y\r\n\r\n",
    "a long path": b"GET /" + b"x" * MAX_BYTES + b" HTTP/1.1\r\nHost: server\r\n\r\n",
    "many headers": HEALTH + b"".join(b"X-%d: y\r\n" % number for number in range(MAX_BYTES // 8)) + b"\r\n",
    "empty headers": HEALTH + b"a:\r\n" * (MAX_BYTES // 4) + b"\r\n",
}


@pytest.mark.parametrize("pieces", [1, 7, 100])
@pytest.mark.parametrize("what", HEADS)
async def test_a_long_head_is_refused_however_it_comes(connect, what, pieces):
    line, head = await connect(), HEADS[what]
    size = -(-len(head) // pieces)
    for first in range(0, len(head), size):
        await line.send(head[first : first + size])
        await asyncio.sleep(0)
    assert too_large(await line.closed())


async def test_a_head_up_to_the_limit_is_answered(connect):
    line = await connect()
    for _ in range(3):
        await line.send(HEALTH + b"X: " + b"x" * (MAX_BYTES - 100) + b"\r\n\r\n")
        head, _ = await line.head_and_body()
        assert head.startswith(b"HTTP/1.1 200 ")


async def test_a_header_without_an_end_is_refused_before_it_is_one(connect):
    line = await connect()
    await line.send(HEALTH + b"X: ")
    for _ in range(4):
        await line.send(b"x" * (MAX_BYTES // 2))
        await asyncio.sleep(0.01)
    assert too_large(await line.closed())


async def test_trailers_without_an_end_close_the_connection(connect):
    line = await connect(header_timeout_s=30)
    await line.send(
        b"POST /v1/workers HTTP/1.1\r\nHost: s\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
    )
    sent = 0
    try:
        while sent < 1_000:
            await line.send(b"X-%d: y\r\n" % sent)
            sent += 1
            await asyncio.sleep(0)
    except ConnectionError:
        pass
    assert await line.closed() == b""
    assert sent < 1_000


@pytest.mark.parametrize(
    "begun", [b"", b"\r\n", b"GET", HEALTH, HEALTH + b"X: y"], ids=["nothing", "a line", "GET", "1", "2"]
)
async def test_a_head_that_is_not_whole_in_time_is_closed(connect, begun):
    line = await connect(header_timeout_s=0.2)
    await line.send(begun)
    assert await line.closed() == b""


async def test_a_head_that_drips_is_closed_all_the_same(connect):
    line = await connect(header_timeout_s=0.3)
    closing = asyncio.create_task(line.closed())
    await line.send(HEALTH)
    for _ in range(1_000):
        try:
            await line.send(b"X: y\r\n")
        except ConnectionError:
            break
        await asyncio.sleep(0.02)
        if closing.done():
            break
    assert closing.done()


async def test_the_next_head_of_a_connection_has_its_time_too(connect):
    line = await connect(header_timeout_s=0.3)
    await line.send(HEALTH + b"\r\n")
    await line.head_and_body()
    await line.send(HEALTH)
    assert await line.closed() == b""


async def test_a_request_that_waits_is_not_taken_for_a_slow_head(connect, start_server):
    server = await start_server(header_timeout_s=0.1)
    worker = await server.enrol("patient")
    async with server.on_a_socket() as client, asyncio.timeout(30):
        headers = {"Authorization": f"Bearer {await worker.token()}", "Prefer": "wait=1"}
        answer = await client.get(f"/v1/workers/{worker.worker_id}/assignment", headers=headers)
    assert answer.status_code == 204


async def test_a_body_that_goes_on_after_its_answer_is_cut_off(connect):
    line = await connect(header_timeout_s=0.3, max_json_bytes=1024)
    await line.send(b"POST /v1/workers HTTP/1.1\r\nHost: s\r\nContent-Length: 1000000\r\n\r\n" + b" " * 2_000)
    head, _ = await line.head_and_body()
    assert head.startswith(b"HTTP/1.1 413 ")
    closing = asyncio.create_task(line.closed())
    for _ in range(1_000):
        try:
            await line.send(b" ")
        except ConnectionError:
            break
        await asyncio.sleep(0.02)
        if closing.done():
            break
    assert closing.done()


@pytest.fixture
async def download(start_server):
    """Begins a download of 16 MB on a bare connection, and reads nothing of it."""
    server = await start_server(body_timeout_s=0.5)
    run = await server.a_run(model={"w": (4_000_000,)})
    async with asyncio.timeout(60), server.on_a_socket() as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
        path = f"/v1/runs/{run.run_id}/tensors/{run.spec.params_digest}"
        key = client.headers["Authorization"]
        writer.write(f"GET {path} HTTP/1.1\r\nAuthorization: {key}\r\nConnection: close\r\n\r\n".encode())
        yield reader, writer
        writer.close()


async def test_an_answer_that_nobody_reads_is_given_up(download):
    _, writer = download
    with pytest.raises(ConnectionError):
        for _ in range(1_000):
            writer.write(b"\r\n")
            await writer.drain()
            await asyncio.sleep(0.02)


async def test_an_answer_that_is_read_slowly_is_not(download):
    reader, _ = download
    size_bytes = 0
    while piece := await reader.read(65_536):
        size_bytes += len(piece)
        await asyncio.sleep(0.005)
    assert size_bytes > 16_000_000


async def test_requests_that_are_sent_ahead_without_end_close_the_connection(start_server):
    server = await start_server(on_disk=True)
    async with asyncio.timeout(30), server.on_a_socket() as client:
        line = Line(*await asyncio.open_connection("127.0.0.1", client.base_url.port))
        async with server.stores.records.write():  # so that the first of them waits
            await line.send(b"GET /readyz HTTP/1.1\r\n\r\n" * 1_000)
            assert await line.closed() == b""
        line.close()


async def test_some_requests_may_be_sent_ahead(connect):
    line = await connect()
    await line.send((HEALTH + b"\r\n") * 10)
    for _ in range(10):
        head, _ = await line.head_and_body()
        assert head.startswith(b"HTTP/1.1 200 ")


async def test_nobody_speaks_for_another_address_unless_trusted(start_server, monkeypatch):
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    assert await last_of_many(await start_server(requests_per_s_per_address=1)) == 429


async def test_the_address_that_a_trusted_proxy_names_is_the_one_that_counts(start_server):
    server = await start_server(requests_per_s_per_address=1, trusted_proxies="10.9.0.0/16, 127.0.0.1")
    assert await last_of_many(server) == 401
    assert await last_of_many(server, forwarded="192.0.2.7") == 429
    assert await last_of_many(server, forwarded="192.0.2.{}, 192.0.2.7") == 429, (
        "the first is the sender's word"
    )


async def last_of_many(server, forwarded="192.0.2.{}"):
    """Make more requests than an address may, each forwarded for this one; gives the last status."""
    async with asyncio.timeout(30), server.on_a_socket() as client:
        for number in range(25):
            headers = {"X-Forwarded-For": forwarded.format(number), "Authorization": "Bearer wrong"}
            answer = await client.get("/v1/runs", headers=headers)
    return answer.status_code


def test_a_proxy_is_an_address_or_a_network():
    assert Settings(trusted_proxies=" 10.0.0.7 ,10.1.0.0/16,").trusted_proxies == "10.0.0.7/32,10.1.0.0/16"
    for wrong in ("*", "proxy.example", "10.0.0.7/8"):
        with pytest.raises(ValidationError):
            Settings(trusted_proxies=wrong)


async def test_only_a_proxy_s_connection_on_which_nothing_is_asked_is_kept_for_long(connect):
    """Longer than the proxy keeps it, which would else send a request on it that nobody reads."""
    of_anybody = await connect()
    of_a_proxy = await connect(trusted_proxies="10.0.0.0/8,127.0.0.1", proxy_keep_alive_s=75)
    of_a_hasty_one = await connect(trusted_proxies="127.0.0.0/8", proxy_keep_alive_s=1)
    lines = (of_anybody, of_a_proxy, of_a_hasty_one)
    began = asyncio.get_running_loop().time()
    for line in lines:
        await line.send(HEALTH + b"\r\n")
        await line.head_and_body()

    async def closed_after_s(line):
        try:
            async with asyncio.timeout(7):
                assert await line.closed() == b""
        except TimeoutError:
            return None
        return asyncio.get_running_loop().time() - began

    anybody, proxy, hasty = await asyncio.gather(*map(closed_after_s, lines))
    assert 4.9 < anybody < 7
    assert proxy is None
    assert 0.9 < hasty < 4


@pytest.mark.parametrize(
    ("host", "is_one"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("fd00::7", True),
        ("11.1.2.3", False),
        ("fd00::8", False),
    ],
)
def test_a_proxy_is_known_by_its_address_however_it_is_written(host, is_one):
    protocol = bounded_protocol(Settings(trusted_proxies="10.0.0.0/8,fd00::7"))
    assert protocol._is_proxy(protocol, host) is is_one
