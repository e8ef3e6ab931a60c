# SPDX-License-Identifier: Apache-2.0
"""What a stranger or a worker sends over HTTP without an end, or with a lie about it, costs no memory."""

import asyncio
import contextlib
import gzip
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from protocol.codec import MEDIA_TYPE, PART_MEDIA_TYPE
from tests.system.conftest import ServerProcess

MEBIBYTE = 1024 * 1024
SENT_BYTES = 48 * MEBIBYTE
MAY_GROW_BYTES = 24 * MEBIBYTE
"""Less than is sent, and more than the server's own buffers and caches take."""
ANSWER_S = 30.0
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

HEADS = {
    "a header's value": (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: ", b"a" * 65_536),
    "a header's name": (b"GET /healthz HTTP/1.1\r\nHost: x\r\n", b"a" * 65_536),
    "headers": (b"GET /healthz HTTP/1.1\r\nHost: x\r\n", b"X-A: b\r\n" * 8_192),
    "a path": (b"GET /", b"a" * 65_536),
    "trailers": (
        b"POST /v1/workers HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        b"X-A: b\r\n" * 8_192,
    ),
}


def peak_bytes(server: ServerProcess) -> int:
    """The most memory that the server's process has had."""
    assert server._process is not None
    for line in Path(f"/proc/{server._process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


async def pour(server: ServerProcess, head: bytes, piece: bytes, size_bytes: int = SENT_BYTES) -> bytes:
    """Send a head and pieces until so much is sent or the server has closed; give what it answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    answered = asyncio.create_task(_all_of(reader))
    try:
        writer.write(head)
        with contextlib.suppress(OSError):
            for _ in range(size_bytes // len(piece)):
                if answered.done():
                    break
                writer.write(piece)
                await writer.drain()
            writer.write_eof()  # a server that still waits for more has no reason to any longer
        async with asyncio.timeout(ANSWER_S):
            return await answered
    finally:
        answered.cancel()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _all_of(reader: asyncio.StreamReader) -> bytes:
    received = b""
    with contextlib.suppress(OSError):
        while part := await reader.read(65_536):
            received += part
    return received


@needs_proc
async def test_a_head_that_never_ends_is_refused_before_it_fills_the_memory(server: ServerProcess) -> None:
    async with httpx.AsyncClient(base_url=server.url) as client:
        assert (await client.get("/healthz")).status_code == 200
        before = peak_bytes(server)
        for head, piece in HEADS.values():
            await pour(server, head, piece)
        assert peak_bytes(server) - before < MAY_GROW_BYTES
        assert (await client.get("/healthz")).status_code == 200


def bodies(key: str) -> Iterator[tuple[str, bytes]]:
    """Heads whose bodies do not end where they should, each with the piece that is sent again and again."""
    digest = "0" * 64
    chunk = b"10000\r\n" + b"\xc0" * 65_536 + b"\r\n"
    for who in ("", f"Authorization: Bearer {key}\r\n"):
        for method, path, media_type in (
            ("PUT", f"/v1/tensors/{digest}", MEDIA_TYPE),
            ("PUT", "/v1/uploads/u-1", MEDIA_TYPE),
            ("PATCH", "/v1/uploads/u-1", PART_MEDIA_TYPE),
            ("POST", "/v1/runs", "application/json"),
            ("POST", "/v1/runs/import", "application/json"),
            ("POST", "/v1/workers", "application/json"),
        ):
            head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {media_type}\r\n{who}"
            yield head + "Transfer-Encoding: chunked\r\n\r\n", chunk
            yield head + f"Content-Length: {10**15}\r\n\r\n", b"\xc0" * 65_536
            yield head + "Content-Length: 10\r\n\r\n", b"\xc0" * 65_536


@needs_proc
async def test_bodies_without_an_end_or_with_a_lie_about_it_cost_little(server: ServerProcess) -> None:
    key = (server.data_dir / "operator.key").read_text().strip()
    async with httpx.AsyncClient(base_url=server.url) as client:
        assert (await client.get("/readyz")).status_code == 200
        before = peak_bytes(server)
        for head, piece in bodies(key):
            answer = await pour(server, head.encode(), piece, 8 * MEBIBYTE)
            assert not answer.startswith(b"HTTP/1.1 5"), (head, answer)
        assert peak_bytes(server) - before < 2 * MAY_GROW_BYTES
        assert (await client.get("/readyz")).status_code == 200
    assert not [path for path in (server.data_dir / "staging").rglob("*") if path.is_file()]


@needs_proc
async def test_an_archive_that_unpacks_to_very_much_costs_no_more_when_it_comes_again(
    server: ServerProcess,
) -> None:
    bomb = gzip.compress(b"[" * (256 * MEBIBYTE), compresslevel=1)
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    headers["Authorization"] = f"Bearer {(server.data_dir / 'operator.key').read_text().strip()}"
    peaks = []
    async with httpx.AsyncClient(base_url=server.url, timeout=ANSWER_S) as client:
        for _ in range(4):
            answer = await client.post("/v1/runs/import", content=bomb, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (413, "message-too-large")
            peaks.append(peak_bytes(server))
    assert peaks[-1] < 512 * MEBIBYTE
    assert peaks[-1] - peaks[0] < MAY_GROW_BYTES
