# SPDX-License-Identifier: Apache-2.0
"""Blobs in an object store, beside the contract: several servers on one, and a store that goes away."""

import hashlib
import random
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import obstore
import pytest
from obstore.store import LocalStore, MemoryStore

from protocol.codec import digest_of
from protocol.errors import StorageCorrupt, StorageNotWritable, StorageUnavailable
from ps_service.aggregation import StoredMessage
from ps_service.effects import perform_effects
from ps_service.settings import Settings
from ps_service.storage import Stores
from ps_service.storage.files import FileBlobs
from ps_service.storage.object_access import ObjectAccess
from ps_service.storage.objects import PAUSED_BYTES, ObjectBlobs
from tests.ps_service.conftest import ParameterServer
from tests.ps_service.test_resumption import send_part
from tests.s3 import ACCESS_KEY, BUCKET, SECRET_KEY, an_s3_server
from tests.small_disk import a_small_disk

MIB = 1024 * 1024
CONTENT = random.Random(0).randbytes(10_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass(frozen=True)
class Counted(ObjectAccess):
    """Notes what is read."""

    reads: list[tuple[str, int, int]] = field(default_factory=list)

    def read(self, key: str, start: int, stop: int) -> memoryview | None:
        self.reads.append((key, start, stop))
        return super().read(key, start, stop)


@pytest.fixture
def objects(s3, tmp_path):
    """A place in a real S3 server."""
    return s3.objects(f"{tmp_path.parent.name}/{tmp_path.name}")


@pytest.fixture
def servers(objects, tmp_path):
    """The stores of two servers that share the objects."""
    return ObjectBlobs(objects, tmp_path / "one"), ObjectBlobs(objects, tmp_path / "other")


def stored(store, content):
    staged = store.stage()
    staged.write(content)
    digest = hashlib.sha256(content).hexdigest()
    staged.seal(digest)
    return digest


def read(store, digest, start, stop):
    buffer = bytearray(stop - start)
    store.read_into(digest, start, buffer)
    return bytes(buffer)


def written(part):
    buffer = bytearray(part.size_bytes)
    assert part.read_into(0, buffer) == part.size_bytes
    return bytes(buffer)


def keys(objects):
    return [key for key, _ in objects.list("")]


# --- several servers -------------------------------------------------------------------------------


def test_what_one_server_seals_or_deletes_is_so_for_the_other(servers):
    one, other = servers
    stored(one, CONTENT)
    assert read(other, DIGEST, 0, len(CONTENT)) == CONTENT
    assert list(other.digests()) == [DIGEST]
    one.delete(DIGEST)
    assert other.size(DIGEST) is None
    stored(other, CONTENT)
    assert read(one, DIGEST, 5, 10) == CONTENT[5:10]


def test_a_part_that_pauses_at_one_server_goes_on_at_another(servers, objects):
    one, other = servers
    part = one.part("upload-1")
    part.write(CONTENT[:4000])
    assert other.part_bytes("upload-1") == 0, "nothing is promised before it pauses"
    part.close()
    assert (other.part_bytes("upload-1"), other.parts()) == (4000, ["upload-1"])
    part = other.part("upload-1")
    assert written(part) == CONTENT[:4000]
    part.write(CONTENT[4000:7000])
    part.close()
    part = one.part("upload-1")
    part.write(CONTENT[7000:])
    part.seal(DIGEST)
    assert read(other, DIGEST, 0, len(CONTENT)) == CONTENT
    assert keys(objects) == [f"blobs/{DIGEST[:2]}/{DIGEST}"]


def test_a_part_larger_than_an_object_it_pauses_in_comes_back_whole(servers, objects):
    one, other = servers
    content = random.Random(1).randbytes(2 * PAUSED_BYTES + 1)
    part = one.part("upload-1")
    part.write(content)
    part.close()
    assert sorted(size for _, size in objects.list("parts")) == [1, PAUSED_BYTES, PAUSED_BYTES]
    part = other.part("upload-1")
    assert written(part) == content
    part.discard()
    assert keys(objects) == []


def test_a_server_that_is_killed_loses_what_it_has_written_since_the_last_pause(objects, tmp_path):
    part = ObjectBlobs(objects, tmp_path / "spool").part("upload-1")
    part.write(CONTENT[:1000])
    part.close()
    part = ObjectBlobs(objects, tmp_path / "spool").part("upload-1")
    part.write(CONTENT[1000:])  # and then the process dies
    store = ObjectBlobs(objects, tmp_path / "spool")
    assert store.part_bytes("upload-1") == 1000
    again = store.part("upload-1")
    assert written(again) == CONTENT[:1000]
    for each in (again, part):
        each.discard()


@pytest.mark.parametrize("seed", range(20))
def test_two_servers_that_write_one_part_at_the_same_time_lose_nothing_that_either_has_closed(seed, tmp_path):
    """Whatever the order of their openings, writes and closings."""
    generator = random.Random(seed)
    objects = ObjectAccess(MemoryStore(), "the object store")
    stores = [ObjectBlobs(objects, tmp_path / name) for name in ("one", "other")]
    writing, closed_bytes = [None, None], 0
    for _ in range(40):
        which = generator.randrange(2)
        part = writing[which]
        if part is None:
            part = writing[which] = stores[which].part("upload-1")
            assert part.size_bytes >= closed_bytes
            assert written(part) == CONTENT[: part.size_bytes]
        elif generator.random() < 0.5:
            part.write(CONTENT[part.size_bytes :][: generator.randrange(800)])
        else:
            part.close()
            closed_bytes = max(closed_bytes, part.size_bytes)
            writing[which] = None
    for part in filter(None, writing):
        part.close()
    part = stores[0].part("upload-1")
    part.write(CONTENT[part.size_bytes :])
    part.seal(DIGEST)
    assert read(stores[1], DIGEST, 0, len(CONTENT)) == CONTENT
    assert len(keys(objects)) == 1


def test_two_bodies_under_one_name_are_read_as_one_body_for_the_digest_to_refuse(servers):
    one, other = servers
    first, second = one.part("upload-1"), other.part("upload-1")
    first.write(CONTENT[:6000])
    second.write(bytes(9000))
    first.close()
    second.close()
    assert one.part_bytes("upload-1") == 9000
    part = one.part("upload-1")
    assert len(written(part)) == 9000
    part.discard()


def test_what_is_written_to_a_part_that_another_has_sealed_is_found_and_discarded(servers, objects):
    one, other = servers
    part = one.part("upload-1")
    part.write(CONTENT[:4000])
    part.close()
    late, part = one.part("upload-1"), other.part("upload-1")
    part.write(CONTENT[4000:])
    part.seal(DIGEST)
    late.write(CONTENT[4000:5000])
    late.close()
    assert (one.part_bytes("upload-1"), one.parts()) == (0, ["upload-1"])
    other.discard_part("upload-1")
    assert len(keys(objects)) == 1


# --- reading ---------------------------------------------------------------------------------------


def test_a_large_message_goes_up_in_parts_and_is_read_in_few_requests(objects, tmp_path):
    content = random.Random(2).randbytes(70 * MIB)
    digest = stored(ObjectBlobs(objects, tmp_path / "one"), content)
    head = obstore.head(objects.store, f"blobs/{digest[:2]}/{digest}")
    assert head["e_tag"].strip('"').endswith("-14"), "chunks of 5 MiB"
    counted = Counted(objects.store, objects.name)
    store = ObjectBlobs(counted, tmp_path / "other")
    assert read(store, digest, 0, 16_384) == content[:16_384]
    assert counted.reads == [(f"blobs/{digest[:2]}/{digest}", 0, 16_384)]
    for start in range(0, len(content), 100_000):
        stop = min(start + 100_000, len(content))
        assert read(store, digest, start, stop) == content[start:stop]
    assert len(counted.reads) <= 26
    assert sum(stop - start for _, start, stop in counted.reads) == len(content)


def test_many_threads_read_many_messages(objects, tmp_path):
    store = ObjectBlobs(objects, tmp_path / "spool")
    contents = [random.Random(number).randbytes(600_000 + number) for number in range(6)]
    digests = [stored(store, content) for content in contents]

    def reads(thread: int) -> None:
        for start in range(0, 600_000, 60_000):
            for digest, content in zip(digests, contents, strict=True):
                assert read(store, digest, start, start + 50_000) == content[start : start + 50_000]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(reads, range(8)))


def test_a_message_that_another_server_deletes_amid_the_reading_is_missing(servers):
    one, other = servers
    stored(one, CONTENT)
    read(one, DIGEST, 0, 100)
    other.delete(DIGEST)
    with pytest.raises(StorageCorrupt, match="missing"):
        read(one, DIGEST, 5000, 6000)


def test_a_message_that_is_not_there_is_missing_rather_than_none(servers):
    with pytest.raises(StorageCorrupt, match=f"{DIGEST} is missing"):
        StoredMessage(servers[0], DIGEST)


def test_an_object_that_lost_its_end_is_corrupt_also_where_its_length_was_known(servers, objects):
    one, _ = servers
    stored(one, CONTENT)
    assert one.size(DIGEST) == len(CONTENT)
    objects.put(f"blobs/{DIGEST[:2]}/{DIGEST}", CONTENT[:5000])
    with pytest.raises(StorageCorrupt, match="6000 bytes expected, 5000 found"):
        read(one, DIGEST, 4000, 6000)


# --- failures --------------------------------------------------------------------------------------


class InUse:
    """A store with something of every kind: staged, written in parts, paused and sealed."""

    def __init__(self, store):
        self.store = store
        self.staged = store.stage()
        self.staged.write(CONTENT)
        self.sealing, self.closing, paused = (store.part(name) for name in ("sealing", "closing", "paused"))
        for part in (self.sealing, self.closing, paused):
            part.write(CONTENT)
        paused.close()
        self.kept, self.doomed, self.unknown = (stored(store, bytes([number]) * 1000) for number in range(3))
        assert store.size(self.kept) == 1000

    def failures(self):
        """What all that can be done meets, everything at the same time."""
        store = self.store
        attempts = {
            "check": store.check,
            "seal": lambda: self.staged.seal(DIGEST),
            "seal a part": lambda: self.sealing.seal(DIGEST),
            "close": self.closing.close,
            "part": lambda: store.part("another"),
            "delete": lambda: store.delete(self.doomed),
            "size": lambda: store.size(self.kept),
            "read": lambda: read(store, self.kept, 0, 100),
            "read unknown": lambda: read(store, self.unknown, 0, 100),
            "digests": lambda: list(store.digests()),
            "parts": store.parts,
            "part_bytes": lambda: store.part_bytes("another"),
            "discard_part": lambda: store.discard_part("paused"),
        }
        with ThreadPoolExecutor(len(attempts)) as pool:
            return dict(zip(attempts, pool.map(failure, attempts.values()), strict=True))


def failure(action):
    try:
        action()
    except (StorageNotWritable, StorageUnavailable) as error:
        assert f"s3://{BUCKET} " in error.detail
        assert SECRET_KEY not in str(error)
        assert ACCESS_KEY not in str(error)
        return type(error)
    return None


AS_NAMED = {
    **dict.fromkeys(("check", "seal", "seal a part", "close", "part", "delete"), StorageNotWritable),
    **dict.fromkeys(("size", "read", "read unknown", "digests", "parts", "part_bytes"), StorageUnavailable),
    "discard_part": None,
}


@pytest.fixture(scope="module")
def mortal(tmp_path_factory, require_part):
    """An S3 server that a test may stop, if it starts it again."""
    with an_s3_server(tmp_path_factory.mktemp("mortal"), require_part) as server:
        yield server


@pytest.mark.parametrize("how", ["hangs", "is gone"])
def test_a_store_that_goes_away_is_named_within_seconds_and_used_again_once_it_is_back(mortal, tmp_path, how):
    """What it was asked before it hung it may still do once it goes on: nothing here depends on that."""
    store = ObjectBlobs(mortal.objects(how.replace(" ", "-"), read_timeout="1s"), tmp_path)
    used = InUse(store)
    stop, come_back = (mortal.pause, mortal.go_on) if how == "hangs" else (mortal.kill, mortal.start)
    stop()
    started_s = time.monotonic()
    failures = used.failures()
    took_s = time.monotonic() - started_s
    come_back()
    assert failures == AS_NAMED
    assert took_s < 20
    assert store.part_bytes("paused") == 0, "discarded, though the store did not hear of it"
    part = store.part("paused")
    assert part.size_bytes == 0
    part.discard()
    part = store.part("closing")
    assert written(part) in (b"", CONTENT), "it may have heard of that"
    part.discard()
    used.staged.seal(DIGEST)
    used.sealing.seal(DIGEST)
    store.check()
    for digest in (used.kept, used.unknown, DIGEST):
        read(store, digest, 0, 1000)
    assert read(store, DIGEST, 0, len(CONTENT)) == CONTENT
    store.delete(used.doomed)
    assert store.size(used.doomed) is None


def test_a_store_that_dies_amid_a_large_message_has_nothing_of_it_until_it_is_sealed_again(mortal, tmp_path):
    content = random.Random(3).randbytes(60 * MIB)
    digest = hashlib.sha256(content).hexdigest()
    store = ObjectBlobs(mortal.objects("amid"), tmp_path)
    staged = store.stage()
    staged.write(content)
    with ThreadPoolExecutor(1) as pool:
        sealing = pool.submit(staged.seal, digest)
        wait([sealing], timeout=0.2)  # a seal takes longer; where it does not, nothing is to be seen
        mortal.kill()
        failed = sealing.exception()
    mortal.start()
    if failed is not None:
        assert isinstance(failed, StorageNotWritable)
        assert store.size(digest) is None
        assert digest not in store.digests()
        staged.seal(digest)
    assert read(store, digest, 0, len(content)) == content


def test_credentials_that_are_refused_are_named_and_not_told(s3, tmp_path):
    store = ObjectBlobs(s3.objects("x", secret_key="another"), tmp_path)
    with pytest.raises(StorageNotWritable, match=f"s3://{BUCKET} refuses the server's credentials"):
        store.check()
    with pytest.raises(StorageUnavailable, match=f"s3://{BUCKET} refuses the server's credentials"):
        store.size(DIGEST)


def test_a_full_disk_under_the_spool_is_named_as_such_and_used_again(tmp_path, require_part):
    objects = ObjectAccess(LocalStore(tmp_path / "objects", mkdir=True), "the object store")
    with a_small_disk(tmp_path / "disk", MIB, require_part) as disk:
        store = ObjectBlobs(objects, disk.path / "spool")
        part = store.part("upload-1")
        part.write(CONTENT)
        part.close()
        disk.fill(leaving_bytes=4096)
        staged = store.stage()
        for write in (lambda: staged.write(CONTENT), lambda: store.part("upload-1")):
            with pytest.raises(StorageNotWritable, match="the server's disk is full"):
                write()
        staged.discard()
        disk.fill()
        with pytest.raises(StorageNotWritable, match="the server's disk is full"):
            store.check()
        assert disk.names() == set()
        disk.make_room()
        store.check()
        part = store.part("upload-1")
        assert written(part) == CONTENT
        part.discard()


# --- a whole federation ----------------------------------------------------------------------------


async def final_tensors(start_server, directory, open_blobs):
    """Two rounds of two workers; an update pauses at one server and goes on at another: {bundle: digest}."""
    directory.mkdir()
    first = await start_server(performing=False, directory=directory, blobs=open_blobs("one"))
    stores = Stores(first.stores.records, open_blobs("other"))
    server = ParameterServer(directory, stores, first.clock, Settings())
    run_id, cohort = await first.a_round(rounds=2)
    worker, assignment = cohort[0]
    update = first.an_update(assignment, value=0.001)
    offer = await worker.declare(assignment, update.header)
    url = offer.json()["upload_url"]
    assert (await send_part(worker, url, 0, update.body[:100])).status_code == 204
    await first.service.uploads.close()
    for each, _ in cohort:
        each.move_to(server)
    answer = await send_part(worker, url, 100, update.body[100:], Upload_Complete="?1")
    assert answer.status_code == 200, answer.text
    await cohort[1][0].send(cohort[1][1])
    assert await perform_effects(server.runner)
    for worker, _ in cohort:
        await worker.send(await worker.assignment())
    await server.aggregate_now()
    run = await server.show(run_id)
    assert (run.status, run.version) == ("finished", 2)
    answer = await server.operator.get(f"/v1/runs/{run_id}/tensors/{run.tensors['params']}")
    assert digest_of([answer.content]) == run.tensors["params"]
    assert set(run.tensors.values()) <= set(stores.blobs.digests())
    assert stores.blobs.parts() == []
    return run.tensors


async def test_a_federation_on_objects_ends_with_the_digests_of_one_on_files(start_server, objects, tmp_path):
    def on_objects(name):
        return ObjectBlobs(objects, tmp_path / "s3" / name)

    def on_files(_name):
        return FileBlobs(tmp_path / "files")

    digests = await final_tensors(start_server, tmp_path / "s3", on_objects)
    assert digests == await final_tensors(start_server, tmp_path / "files", on_files)
