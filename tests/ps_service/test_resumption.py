# SPDX-License-Identifier: Apache-2.0
"""Bodies that come in parts: across requests, broken connections, restarts and damage."""

import asyncio

import pytest

from protocol.codec import PART_MEDIA_TYPE
from protocol.errors import StorageNotWritable, StorageUnavailable
from ps_service import uploads
from ps_service.deadlines import tick
from ps_service.storage.files import FileBlobs, PartFile


async def an_upload(server, **spec):
    _, [(worker, assignment), *_] = await server.a_round(**spec)
    update = server.an_update(assignment)
    url = (await worker.declare(assignment, update.header)).json()["upload_url"]
    return worker, assignment, update, url


async def send_part(worker, url, first, data, **headers):
    announced = {"Content-Type": PART_MEDIA_TYPE, "Upload-Offset": str(first)}
    announced |= {name.replace("_", "-"): value for name, value in headers.items()}
    return await worker.http.patch(url, content=data, headers=announced)


async def offset(worker, url):
    answer = await worker.http.head(url)
    assert answer.status_code == 204
    assert answer.headers["Cache-Control"] == "no-store"
    return int(answer.headers["Upload-Offset"]), answer.headers["Upload-Complete"]


async def cut_off(worker, url, first, data, length, **headers):
    """Send `data` of a body that was announced as longer, and fall silent."""

    async def silent():
        yield data
        raise ConnectionError("the network is gone")

    with pytest.raises(ConnectionError):
        await send_part(worker, url, first, silent(), Content_Length=str(length), **headers)


@pytest.mark.parametrize("part_bytes", [1, 7, 100])
async def test_parts_make_the_whole(start_server, part_bytes):
    server = await start_server(requests_per_s_per_worker=1_000)
    worker, assignment, update, url = await an_upload(server)
    body = update.body
    for first in range(0, len(body) - part_bytes, part_bytes):
        answer = await send_part(worker, url, first, body[first : first + part_bytes])
        assert answer.status_code == 204, answer.text
        held = first + part_bytes
        assert (answer.headers["Upload-Offset"], answer.headers["Upload-Complete"]) == (str(held), "?0")
        assert await offset(worker, url) == (held, "?0")
        again = await worker.declare(assignment, update.header)
        assert again.json()["offset"] == held
    answer = await send_part(worker, url, held, body[held:], Upload_Complete="?1")
    assert answer.status_code == 200
    assert answer.json()["digest"] == update.header["digest"]
    assert await offset(worker, url) == (len(body), "?1")
    assert (await server.inventory())[0]["updates"] == 1


async def test_a_part_goes_on_after_a_restart_with_what_is_on_disk(start_server):
    server = await start_server(on_disk=True, performing=False)
    worker, _, update, url = await an_upload(server)
    await send_part(worker, url, 0, update.body[:150])
    server = await start_server(on_disk=True, performing=False, clock=server.clock)
    worker = worker.moved_to(server)
    assert await offset(worker, url) == (150, "?0")
    answer = await send_part(worker, url, 150, update.body[150:])
    assert answer.status_code == 200, answer.text
    await server.service.housekeeping.look()
    assert not [file for file in (await server.inventory())[1] if "parts" in file]


async def test_what_a_power_cut_damaged_is_thrown_away_and_sent_again(start_server):
    server = await start_server(on_disk=True, performing=False)
    worker, assignment, update, url = await an_upload(server)
    await send_part(worker, url, 0, update.body[:150])
    [part] = (server.directory / "parts").iterdir()
    part.write_bytes(bytes(150))
    server = await start_server(on_disk=True, performing=False, clock=server.clock)
    worker = worker.moved_to(server)
    answer = await send_part(worker, url, 150, update.body[150:])
    assert (answer.status_code, answer.json()["code"]) == (409, "upload-offset-mismatch")
    assert (await worker.declare(assignment, update.header)).json()["offset"] == 0
    assert (await send_part(worker, url, 0, update.body)).status_code == 200


async def test_a_damaged_part_that_nobody_could_see_is_found_by_the_digest(start_server):
    server = await start_server(on_disk=True, performing=False)
    worker, _, update, url = await an_upload(server)
    middle = len(update.body) - 8
    await send_part(worker, url, 0, update.body[:middle])
    [part] = (server.directory / "parts").iterdir()
    damaged = bytearray(part.read_bytes())
    damaged[-4] ^= 1
    part.write_bytes(bytes(damaged))
    server = await start_server(on_disk=True, performing=False, clock=server.clock)
    worker = worker.moved_to(server)
    answer = await send_part(worker, url, middle, update.body[middle:])
    assert (answer.status_code, answer.json()["code"]) == (400, "digest-mismatch")
    assert await offset(worker, url) == (0, "?0")
    assert (await send_part(worker, url, 0, update.body)).status_code == 200


REFUSED = {
    "a gap": (120, b"x", {}, 409, "upload-offset-mismatch"),
    "an overlap": (50, b"x", {}, 409, "upload-offset-mismatch"),
    "too much": (100, bytes(10**6), {}, 400, "size-mismatch"),
    "an end too early": (100, b"x", {"Upload_Complete": "?1"}, 400, "size-mismatch"),
    "no offset": (100, b"x", {"Upload_Offset": ""}, 422, "invalid-message"),
    "a negative offset": (100, b"x", {"Upload_Offset": "-1"}, 422, "invalid-message"),
    "another type": (100, b"x", {"Content_Type": "text/plain"}, 415, "unsupported-media-type"),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_a_part_that_does_not_fit_changes_nothing(server, what):
    worker, _, update, url = await an_upload(server)
    await send_part(worker, url, 0, update.body[:100])
    first, data, headers, status, code = REFUSED[what]
    answer = await send_part(worker, url, first, data, **headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert await offset(worker, url) == (100, "?0")
    assert (await send_part(worker, url, 100, update.body[100:])).status_code == 200


async def test_a_bad_value_in_a_part_throws_the_whole_away(server):
    worker, _, update, url = await an_upload(server)
    await send_part(worker, url, 0, update.body[:8])
    answer = await send_part(worker, url, 8, b"\xc1" * 100)
    assert answer.status_code == 400
    assert await offset(worker, url) == (0, "?0")


async def test_a_whole_body_begins_afresh_whatever_came_before(server):
    worker, _, update, url = await an_upload(server)
    await send_part(worker, url, 0, update.body[:100])
    assert (await worker.put(url, update.body)).status_code == 200


async def test_nobody_sees_or_continues_another_s_upload(server):
    _, [(worker, assignment), (other, _)] = await server.a_round()
    update = server.an_update(assignment)
    url = (await worker.declare(assignment, update.header)).json()["upload_url"]
    assert (await other.http.head(url)).status_code == 404
    assert (await send_part(other, url, 0, update.body)).status_code == 404
    assert await offset(worker, url) == (0, "?0")


async def test_a_sender_that_comes_again_takes_over_from_its_own_broken_request(server):
    """The first request hangs, as one whose connection broke unnoticed; what it brought is kept."""
    worker, _, update, url = await an_upload(server)
    begun = asyncio.Event()

    async def hanging():
        yield update.body[:100]
        begun.set()
        await asyncio.Event().wait()

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        length = str(len(update.body))
        first = group.create_task(send_part(worker, url, 0, hanging(), Content_Length=length))
        await begun.wait()
        assert await offset(worker, url) == (100, "?0")
        assert (await send_part(worker, url, 100, update.body[100:])).status_code == 200
    assert (first.result().status_code, first.result().json()["code"]) == (408, "upload-interrupted")


async def test_one_that_does_not_give_way_keeps_its_upload(server, monkeypatch):
    monkeypatch.setattr(uploads, "GIVES_WAY_WITHIN_S", 0.01)
    worker, _, update, url = await an_upload(server)
    async with server.service.uploads.alone(url.rpartition("/")[2], lambda: None):
        answer = await send_part(worker, url, 0, update.body)
    assert (answer.status_code, answer.json()["code"]) == (409, "upload-in-progress")
    assert answer.json()["retryable"]
    assert (await send_part(worker, url, 0, update.body)).status_code == 200


async def test_an_interrupted_whole_body_is_gone_on_with(start_server):
    server = await start_server(body_timeout_s=0.05)
    worker, _, update, url = await an_upload(server)

    async def falling_silent():
        yield update.body[:100]
        await asyncio.Event().wait()

    async with asyncio.timeout(10):
        await worker.put(url, falling_silent(), Content_Length=str(len(update.body)))
    assert await offset(worker, url) == (100, "?0")
    assert (await send_part(worker, url, 100, update.body[100:])).status_code == 200


async def test_many_may_pause_and_few_are_held_in_memory(server, monkeypatch):
    server.service.uploads._most_in_memory = 2
    _, cohort = await server.a_round(5)
    urls, sent = [], []
    for worker, assignment in cohort:
        update = server.an_update(assignment, seed=len(urls))
        urls.append((await worker.declare(assignment, update.header)).json()["upload_url"])
        sent.append(update)
        await send_part(worker, urls[-1], 0, update.body[:100])
    assert len(server.service.uploads._paused) == 2
    for (worker, _), url, update in zip(cohort, urls, sent, strict=True):
        answer = await send_part(worker, url, 100, update.body[100:])
        assert answer.status_code == 200, answer.text


async def test_parts_of_a_round_that_is_over_are_deleted_and_those_of_an_open_one_kept(start_server):
    server = await start_server(performing=False)
    worker, assignment, update, url = await an_upload(server, quorum=1, deadline_s=60, workers=2)
    await send_part(worker, url, 0, update.body[:100])
    other = server.an_update(assignment, seed=5)
    other_url = (await worker.declare(assignment, other.header)).json()["upload_url"]
    await send_part(worker, other_url, 0, other.body[:100])

    await server.service.housekeeping.look()

    def parts():
        return sorted(path.name for path in (server.directory / "parts").iterdir())

    assert parts() == [other_url.rpartition("/")[2]], "what was declared in place of it stays"
    server.clock.advance(60_000)
    await tick(server.runner)
    await server.service.housekeeping.look()
    assert parts() == []
    answer = await send_part(worker, other_url, 100, other.body[100:])
    assert (answer.status_code, answer.json()["code"]) == (409, "round-closed")


class Silent(FileBlobs):
    """A store that gives nothing for now."""

    def size(self, digest):
        raise StorageUnavailable("the object store does not answer")


async def test_a_store_that_gives_nothing_for_now_keeps_what_has_come(start_server):
    server = await start_server(on_disk=True, performing=False)
    worker, _, update, url = await an_upload(server)
    await send_part(worker, url, 0, update.body[:100])
    await server.service.uploads.close()
    silent = await start_server(
        on_disk=True, performing=False, clock=server.clock, blobs=Silent(server.directory)
    )
    worker.move_to(silent)
    answer = await send_part(worker, url, 100, update.body[100:])
    assert (answer.status_code, answer.json()["code"]) == (503, "storage-unavailable")
    assert answer.headers["Retry-After"] == "1"
    worker.move_to(server)
    assert await offset(worker, url) == (100, "?0")
    assert (await send_part(worker, url, 100, update.body[100:])).status_code == 200


class OneThatDoesNotClose(FileBlobs):
    """The first part that is closed cannot be."""

    fails = True

    def part(self, name):
        store = self

        class Part(PartFile):
            def close(self):
                super().close()
                if store.fails:
                    store.fails = False
                    raise StorageNotWritable("the object store does not answer")

        path = self._parts / name
        return Part(self, path, path.open("a+b", buffering=0))


async def test_what_can_be_written_down_at_a_stop_is_though_something_else_cannot(start_server, tmp_path):
    server = await start_server(blobs=OneThatDoesNotClose(tmp_path))
    _, cohort = await server.a_round(3)
    for worker, assignment in cohort:
        update = server.an_update(assignment)
        url = (await worker.declare(assignment, update.header)).json()["upload_url"]
        await send_part(worker, url, 0, update.body[:100])
    parts = [paused.part for paused in server.service.uploads._paused.values()]
    with pytest.raises(StorageNotWritable):
        await server.service.uploads.close()
    assert [part._file.closed for part in parts] == [True] * 3
