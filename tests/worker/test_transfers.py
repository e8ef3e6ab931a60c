# SPDX-License-Identifier: Apache-2.0
"""Updates and global state that are cut off on their way, and go on where they were."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from protocol.errors import (
    DigestMismatch,
    MessageTooLarge,
    ServerUnreachable,
    UnexpectedAnswer,
    UploadInterrupted,
)
from protocol.messages import Receipt, UpdateHeader
from tests.worker.small_server import problem
from worker import downloader, uploader
from worker.client import ServerClient
from worker.download import Download
from worker.downloader import Downloader
from worker.uploader import Uploader


@pytest.fixture(autouse=True)
def any_progress_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (uploader, downloader):
        monkeypatch.setattr(module, "LEAST_PROGRESS_BYTES", 1)


MESSAGE = bytes(range(256)) * 40
DIGEST = hashlib.sha256(MESSAGE).hexdigest()
HEADER = UpdateHeader(
    digest=DIGEST, size_bytes=len(MESSAGE), bundles=("delta",), encodings={"delta": "f32"}, num_examples=1,
    local_steps=1,
)  # fmt: skip
RECEIPT = Receipt(assignment_id="a-1", digest=DIGEST, received_ms=1, outcome="pending")

Mishap = Callable[["Way", bytes], httpx.Response | None]


@dataclass
class Way(httpx.AsyncBaseTransport):
    """The way to a server that holds what came; `mishap` may take less of a part, answer, or raise."""

    mishap: Mishap
    held: bytes = b""
    parts: list[int] = field(default_factory=list)
    declared: int = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = self._answer(request, await request.aread())
        stream = httpx.ByteStream(answer.content)  # as from a network: not read yet
        return httpx.Response(answer.status_code, headers=answer.headers, stream=stream)

    def _answer(self, request: httpx.Request, body: bytes) -> httpx.Response:
        if request.method == "POST":
            self.declared += 1
            return httpx.Response(201, json={"upload_url": "/v1/uploads/u-1", "offset": len(self.held)})
        self.parts.append(len(body))
        assert body == MESSAGE[int(request.headers["Upload-Offset"]) :][: len(body)]
        assert request.headers["Upload-Offset"] == str(len(self.held))
        answer = self.mishap(self, body)
        if answer is not None:
            return answer
        self.held += body
        if self.held == MESSAGE:
            assert request.headers["Upload-Complete"] == "?1"
            return httpx.Response(200, content=RECEIPT.model_dump_json())
        return httpx.Response(204, headers={"Upload-Offset": str(len(self.held))})


async def push(way: Way, tmp_path: Path, uploader_: Uploader | None = None) -> Receipt:
    path = tmp_path / "message"
    path.write_bytes(MESSAGE)
    async with ServerClient("http://fed.example", way) as client:
        return await (uploader_ or Uploader(client)).push("a-1", HEADER, path)


def cut_after(size_bytes: int) -> Mishap:
    """The connection breaks after so many bytes, which the server keeps."""

    def mishap(way: Way, body: bytes) -> httpx.Response | None:
        if len(body) <= size_bytes:
            return None
        way.held += body[:size_bytes]
        raise httpx.WriteError("cut")

    return mishap


def buffered(size_bytes: int) -> Mishap:
    """A proxy takes a body whole before it hands it on, and cuts after so many bytes."""

    def mishap(way: Way, body: bytes) -> httpx.Response | None:
        if len(body) > size_bytes:
            raise httpx.WriteError("cut")
        return None

    return mishap


def limited(size_bytes: int) -> Mishap:
    """An ingress takes no body longer than this, and says so in its own words."""

    def mishap(way: Way, body: bytes) -> httpx.Response | None:
        return httpx.Response(413, text="too large") if len(body) > size_bytes else None

    return mishap


async def test_a_whole_message_goes_in_one_request(tmp_path: Path):
    way = Way(lambda way, body: None)
    assert await push(way, tmp_path) == RECEIPT
    assert (way.parts, way.declared) == ([len(MESSAGE)], 1)


async def test_one_that_is_cut_off_again_and_again_goes_on_at_once_while_it_comes_further(tmp_path: Path):
    way = Way(cut_after(1000))
    assert await push(way, tmp_path) == RECEIPT
    assert way.held == MESSAGE
    assert len(way.parts) == 11


async def test_what_the_server_holds_from_before_is_not_sent_again(tmp_path: Path):
    """As after a restart of the worker: the outbox has the message, and nobody knows how far it came."""
    way = Way(lambda way, body: None, held=MESSAGE[:9000])
    assert await push(way, tmp_path) == RECEIPT
    assert way.parts == [len(MESSAGE) - 9000]


async def test_a_message_that_came_whole_but_for_its_answer_is_completed_with_nothing(tmp_path: Path):
    way = Way(lambda way, body: None, held=MESSAGE)
    assert await push(way, tmp_path) == RECEIPT
    assert way.parts == [0]


async def test_one_that_comes_no_further_is_left_to_who_knows_how_long_to_wait(tmp_path: Path):
    way = Way(cut_after(0))
    with pytest.raises(ServerUnreachable):
        await push(way, tmp_path)
    assert (len(way.parts), way.declared) == (1, 2)


@pytest.mark.parametrize("way_there", [buffered, limited])
async def test_parts_become_as_small_as_the_way_bears_and_larger_again(
    tmp_path: Path, way_there: Callable[[int], Mishap], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(uploader, "LEAST_PART_BYTES", 64)
    monkeypatch.setattr(uploader, "MOST_PART_BYTES", 8192)
    way = Way(way_there(600))
    async with ServerClient("http://fed.example", way) as client:
        sender = Uploader(client)
        for _ in range(10):  # a worker waits and tries again
            try:
                assert await push(way, tmp_path, sender) == RECEIPT
                break
            except ServerUnreachable:
                continue
        else:
            raise AssertionError("it never arrived")
    assert way.held == MESSAGE
    assert min(way.parts) <= 512


async def test_a_way_that_takes_nothing_at_all_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(uploader, "LEAST_PART_BYTES", 4096)
    with pytest.raises(MessageTooLarge):
        await push(Way(limited(10)), tmp_path)


async def test_an_offset_beyond_the_end_is_no_offset(tmp_path: Path):
    with pytest.raises(UnexpectedAnswer, match="offset 10241 of 10240"):
        await push(Way(lambda way, body: None, held=MESSAGE + b"x"), tmp_path)


async def test_a_server_that_miscounts_is_not_believed(tmp_path: Path):
    way = Way(lambda way, body: httpx.Response(204, headers={"Upload-Offset": "7"}))
    with pytest.raises(UnexpectedAnswer, match="7 bytes are held"):
        await push(way, tmp_path)


async def test_a_part_that_does_not_fit_is_declared_anew(tmp_path: Path):
    way = Way(lambda way, body: problem("upload-offset-mismatch"))
    with pytest.raises(UploadInterrupted):
        await push(way, tmp_path)
    assert way.declared == 2


async def test_one_that_hardly_comes_further_waits_before_it_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(uploader, "LEAST_PROGRESS_BYTES", 1001)
    way = Way(cut_after(1000))
    with pytest.raises(ServerUnreachable):
        await push(way, tmp_path)
    assert (len(way.parts), len(way.held)) == (1, 1000)


# --- downloads ------------------------------------------------------------------------------------


@dataclass
class Source(httpx.AsyncBaseTransport):
    """Gives `size_bytes` of what is asked for, and breaks."""

    size_bytes: int
    ranges: list[str] = field(default_factory=list)
    obeys_ranges: bool = True
    message: bytes = MESSAGE

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        asked = request.headers.get("Range", "bytes=0-")
        self.ranges.append(asked)
        first = int(asked[6:-1]) if self.obeys_ranges else 0
        if first:
            assert request.headers["If-Range"] == f'"{DIGEST}"'
        total = len(self.message)
        headers = {"Content-Length": str(total - first)}
        if first:
            headers["Content-Range"] = f"bytes {first}-{total - 1}/{total}"
        return httpx.Response(206 if first else 200, headers=headers, stream=self._broken(first))

    def _broken(self, first: int) -> httpx.AsyncByteStream:
        rest, size_bytes = self.message[first:], self.size_bytes

        class Broken(httpx.AsyncByteStream):
            async def __aiter__(self):  # type: ignore[no-untyped-def]
                yield rest[:size_bytes]
                if len(rest) > size_bytes:
                    raise httpx.ReadError("cut")

        return Broken()


async def fetch(source: Source, times: int = 1) -> memoryview:
    async with ServerClient("http://fed.example", source) as client:
        downloader = Downloader(client)
        for _ in range(times - 1):
            with pytest.raises(ServerUnreachable):
                await downloader.fetch("run-1", DIGEST)
        return await downloader.fetch("run-1", DIGEST)


async def test_a_download_goes_on_where_it_was_cut_off():
    source = Source(3000)
    assert await fetch(source) == MESSAGE
    assert source.ranges == ["bytes=0-", "bytes=3000-", "bytes=6000-", "bytes=9000-"]


async def test_a_download_that_comes_no_further_is_gone_on_with_at_the_next_call():
    source = Source(3000)

    async with ServerClient("http://fed.example", source) as client:
        downloader = Downloader(client)
        source.size_bytes = 0
        with pytest.raises(ServerUnreachable):
            await downloader.fetch("run-1", DIGEST)
        download = Download(DIGEST)
        download.begin(len(MESSAGE), 0)
        download.take(MESSAGE[:4000])
        downloader._cut_off = download
        source.size_bytes = 10**6
        assert await downloader.fetch("run-1", DIGEST) == MESSAGE
    assert source.ranges[-1] == "bytes=4000-"


async def test_a_server_that_gives_all_instead_of_a_part_is_listened_to_from_the_beginning():
    source = Source(3000, obeys_ranges=False)
    async with ServerClient("http://fed.example", source) as client:
        downloader = Downloader(client)
        with pytest.raises(ServerUnreachable):
            await downloader.fetch("run-1", DIGEST)
        source.size_bytes = 10**6
        assert await downloader.fetch("run-1", DIGEST) == MESSAGE


async def test_a_download_of_other_bytes_is_refused_and_not_gone_on_with():
    source = Source(3000, message=MESSAGE[:-1] + b"\x00")
    async with ServerClient("http://fed.example", source) as client:
        downloader = Downloader(client)
        with pytest.raises(DigestMismatch):
            await downloader.fetch("run-1", DIGEST)
        source.message, source.size_bytes = MESSAGE, 10**6
        assert await downloader.fetch("run-1", DIGEST) == MESSAGE
    assert source.ranges[-1] == "bytes=0-"


@pytest.mark.parametrize(
    "content_range", ["", "bytes 0-10239/10240", "bytes 3000-5000/10240", "bytes 3000-10239/*", "lines 1-2/3"]
)
async def test_another_range_than_was_asked_for_is_not_taken(content_range: str):
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(206, headers={"Content-Range": content_range}, content=MESSAGE[3000:])

    download = Download(DIGEST)
    download.begin(len(MESSAGE), 0)
    download.take(MESSAGE[:3000])
    async with ServerClient("http://fed.example", httpx.MockTransport(answer)) as client:
        with pytest.raises(UnexpectedAnswer, match="bytes from 3000 to the end"):
            await client.fetch_tensors("run-1", download)
