# SPDX-License-Identifier: Apache-2.0
"""A run goes into an archive and out of it: the same bytes twice, and whole or not at all."""

import asyncio
import json
import tarfile
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from fed_sophia.version_choice import Wanted
from protocol.errors import (
    DigestMismatch,
    InvalidMessage,
    InvalidUsage,
    NotFound,
    ServerUnreachable,
    UnknownTensors,
)
from tests.fed_sophia.small_run import (
    LAST,
    PARAMS,
    TENSORS,
    FakeServer,
    a_round,
    digest_of,
    files_in,
    read,
    tar,
)

# --- export -------------------------------------------------------------------------------------


async def test_an_archive_is_a_plain_tar_that_any_program_unpacks(tmp_path: Path) -> None:
    path = tmp_path / "run.tar"
    await FakeServer().export(path, (0, 2))
    tar(tmp_path, "xf run.tar")
    document = json.loads((tmp_path / "run.json").read_text())
    assert document["included"] == [0, 2]
    assert document["versions"] == FakeServer().versions
    assert files_in(tmp_path / "tensors") == {
        PARAMS[0]: TENSORS[PARAMS[0]],
        PARAMS[2]: TENSORS[PARAMS[2]],
    }
    with tarfile.open(path) as opened:
        assert [member.name for member in opened] == ["run.json", *(f"tensors/{PARAMS[v]}" for v in (0, 2))]
        assert {(member.mtime, member.uid, member.gid, member.mode) for member in opened} == {
            (0, 0, 0, 0o644)
        }


async def test_two_exports_are_the_same_bytes(tmp_path: Path) -> None:
    server = FakeServer()
    for name in ("one.tar", "two.tar"):
        await server.export(tmp_path / name, "all")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


async def test_the_round_that_is_open_is_left_out_and_the_others_are_told_whole(tmp_path: Path) -> None:
    server = FakeServer()
    await server.export(tmp_path / "run.tar")
    document = read(tmp_path / "run.tar").archive.model_dump(mode="json")
    assert document["rounds"] == [
        round_ | {"reason": None, "lost": 0, "last_admitted_ms": None, "staleness": []}
        for round_ in server.rounds[:2]
    ]
    assert (document["status"], len(document["versions"])) == ("paused", LAST + 1)


async def test_a_version_that_was_made_while_the_rest_was_asked_for_is_left_out(tmp_path: Path) -> None:
    server = FakeServer()
    later = {"version": 3, "tensors": {"params": "f" * 64}, "created_ms": 3}
    server.versions.append(later)  # the rounds had been listed before its round ended
    await server.export(tmp_path / "run.tar")
    archive = read(tmp_path / "run.tar").archive
    assert (archive.version, archive.included) == (LAST, (LAST,))


async def test_a_run_that_ends_meanwhile_is_exported_as_ended(tmp_path: Path) -> None:
    server = FakeServer()

    class Ending(FakeServer):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            answer = await super().handle_async_request(request)
            if request.url.path.endswith("/versions") and self.status == "paused":
                self.status = "finished"
                self.rounds[2] = a_round(3, "abandoned", base_version=2, reason="the run ended")
            return answer

    server = Ending()
    await server.export(tmp_path / "run.tar")
    archive = read(tmp_path / "run.tar").archive
    assert (archive.status.value, archive.ended_ms, len(archive.rounds)) == ("finished", 99, 3)


@pytest.mark.parametrize(
    ("wanted", "versions"), [("last", (2,)), ("all", (1, 2)), ("none", ()), ((1, 2), (1, 2))]
)
async def test_the_tensors_of_the_chosen_versions_are_fetched_and_no_others(
    wanted: Wanted, versions: tuple[int, ...], tmp_path: Path
) -> None:
    server = FakeServer()
    server.versions[0]["collected"] = True
    await server.export(tmp_path / "run.tar", wanted)
    fetched = [request.rpartition("/")[2] for request in server.asked if "/tensors/" in request]
    assert fetched == [PARAMS[version] for version in versions]
    assert read(tmp_path / "run.tar").archive.included == versions


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ((0,), "version 0 is no longer kept; kept are 1, 2"),
        ((3,), "version 3 of run r: expected one of 0 to 2"),
    ],
)
async def test_a_version_that_cannot_be_had_is_refused_by_its_number(
    wanted: Wanted, says: str, tmp_path: Path
) -> None:
    server = FakeServer()
    server.versions[0]["collected"] = True
    with pytest.raises(NotFound, match=says):
        await server.export(tmp_path / "run.tar", wanted)
    assert files_in(tmp_path) == {}


async def test_a_tensor_is_never_held_whole(tmp_path: Path) -> None:
    size_bytes, chunk = 64 << 20, bytes(1 << 20)
    digest = digest_of(bytes(size_bytes))

    async def content() -> AsyncIterator[bytes]:
        for _ in range(size_bytes // len(chunk)):
            yield chunk

    class Large(FakeServer):
        def _tensors(self, digest: str) -> httpx.Response:
            return httpx.Response(200, content=content(), headers={"Content-Length": str(size_bytes)})

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if request.method == "PUT":
                assert isinstance(request.stream, httpx.AsyncByteStream)
                received.append(sum([len(part) async for part in request.stream]))
                self.blobs[digest] = b"counted, and not kept"
                return httpx.Response(201, json={})
            return await super().handle_async_request(request)

    received: list[int] = []
    server = Large()
    server.versions[LAST]["tensors"] = {"params": digest}
    tracemalloc.start()
    try:
        told = await server.export(tmp_path / "run.tar")
        server.blobs.clear()
        await server.take(tmp_path / "run.tar")
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert received == [size_bytes]
    assert peak_bytes < size_bytes / 4
    assert [progress.size_bytes for progress in told] == sorted({progress.size_bytes for progress in told})
    assert (told[-1].tensors, told[-1].of) == (1, 1)


async def test_an_export_that_is_stopped_or_fails_leaves_nothing_and_spoils_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.tar"
    path.write_bytes(b"what was there before")
    arrived = asyncio.Event()

    async def stalled() -> AsyncIterator[bytes]:
        yield b"x" * 100
        arrived.set()
        await asyncio.Event().wait()

    async def cut() -> AsyncIterator[bytes]:
        yield b"x" * 100
        raise httpx.ReadError("cut")

    async def wrong() -> AsyncIterator[bytes]:
        yield b"x" * 1000

    class Sending(FakeServer):
        def _tensors(self, digest: str) -> httpx.Response:
            return httpx.Response(200, content=sending(), headers={"Content-Length": "1000"})

    sending: Callable[[], AsyncIterator[bytes]] = stalled
    exporting = asyncio.create_task(Sending().export(path))
    async with asyncio.timeout(10):
        await arrived.wait()
    assert len(files_in(tmp_path)) == 2, "a part is written beside it"
    exporting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await exporting
    for sending, error in ((cut, ServerUnreachable), (wrong, DigestMismatch)):  # noqa: B007  # used above
        with pytest.raises(error):
            await Sending().export(path)
    assert files_in(tmp_path) == {"run.tar": b"what was there before"}


async def test_a_folder_that_cannot_be_written_to_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InvalidUsage, match=r"absent/run\.tar cannot be written: No such file or directory"):
        await FakeServer().export(tmp_path / "absent" / "run.tar")


# --- import -------------------------------------------------------------------------------------


async def test_what_was_exported_is_imported_and_only_what_is_lacking_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "run.tar"
    await FakeServer().export(path, "all")
    other = FakeServer(blobs={PARAMS[1]: TENSORS[PARAMS[1]]})
    await other.take(path)
    assert other.blobs == TENSORS
    assert [asked for asked in other.asked if asked.startswith("PUT")] == [
        f"PUT /v1/tensors/{PARAMS[version]}" for version in (0, 2)
    ]
    assert other.imported == [read(path).archive.model_dump(mode="json")]


async def test_a_new_name_is_the_spec_s_and_changes_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run.tar"
    await FakeServer().export(path)
    other = FakeServer({})
    await other.take(path, name="second")
    (document,) = other.imported
    assert document["spec"].pop("name") == "second"
    same = read(path).archive.model_dump(mode="json")
    assert same["spec"].pop("name") == "n"
    assert document == same
    with pytest.raises(InvalidMessage, match="name"):
        await other.take(path, name="no name")
    assert len(other.imported) == 1


async def test_tensors_that_were_collected_after_the_server_had_said_it_has_them_are_sent(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run.tar"
    await FakeServer().export(path, "all")
    other = FakeServer()
    other.forget_once = {PARAMS[2]}
    await other.take(path)
    assert len(other.imported) == 1


async def test_an_archive_without_the_last_version_can_be_imported_only_where_that_is(tmp_path: Path) -> None:
    path = tmp_path / "run.tar"
    await FakeServer().export(path, (0, 1))
    with pytest.raises(UnknownTensors, match="holds no tensors of version 2, the last"):
        await FakeServer({}).take(path)
    there = FakeServer({PARAMS[2]: TENSORS[PARAMS[2]]})
    await there.take(path)
    assert len(there.imported) == 1


async def test_collected_tensors_are_sent_again_also_where_the_archive_lacks_the_last_version(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run.tar"
    await FakeServer().export(path, (0, 1))
    other = FakeServer({PARAMS[2]: TENSORS[PARAMS[2]]})
    other.forget_once = {PARAMS[1]}
    await other.take(path)
    assert len(other.imported) == 1
