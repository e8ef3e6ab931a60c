# SPDX-License-Identifier: Apache-2.0
"""The contract of `storage/blobs.py`, for every store."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from obstore.store import LocalStore

from protocol.errors import StorageCorrupt, StorageNotWritable
from ps_service.storage.blobs import BlobStore
from ps_service.storage.files import FileBlobs
from ps_service.storage.object_access import ObjectAccess
from ps_service.storage.objects import ObjectBlobs
from tests.small_disk import a_small_disk

CONTENT = bytes(range(256)) * 40
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass(frozen=True)
class Place:
    """Where a store keeps things."""

    open_store: Callable[[], BlobStore]
    """Opens it on what is there."""
    everything: Callable[[], list[str]]
    """Names all that is there, readable or not."""


def of_files(request, directory):
    return Place(lambda: FileBlobs(directory), lambda: files_under(directory))


def of_objects_on_disk(request, directory):
    directory.joinpath("objects").mkdir()
    objects = ObjectAccess(LocalStore(directory / "objects"), "the object store")
    return of_objects(objects, directory / "spool")


def of_objects_in_s3(request, directory):
    server = request.getfixturevalue("s3")
    return of_objects(server.objects(f"{directory.parent.name}/{directory.name}"), directory / "spool")


def of_objects(objects, spool):
    return Place(
        lambda: ObjectBlobs(objects, spool),
        lambda: [*files_under(spool), *(key for key, _ in objects.list(""))],
    )


PLACES = {"files": of_files, "objects on disk": of_objects_on_disk, "objects in S3": of_objects_in_s3}


@pytest.fixture(params=PLACES)
def place(request, tmp_path):
    return PLACES[request.param](request, tmp_path)


@pytest.fixture
def open_store(place):
    """Opens the store on the same place each time it is called."""
    return place.open_store


def everything(store, digest=DIGEST):
    buffer = bytearray(store.size(digest))
    store.read_into(digest, 0, buffer)
    return bytes(buffer)


def stored(store, content=CONTENT):
    staged = store.stage()
    staged.write(content)
    staged.seal(hashlib.sha256(content).hexdigest())
    return staged


def files_under(path):
    return [str(file) for file in path.rglob("*") if file.is_file()]


def test_nothing_can_be_read_before_the_seal(open_store):
    store = open_store()
    staged = store.stage()
    staged.write(CONTENT)
    assert store.size(DIGEST) is None
    with pytest.raises(StorageCorrupt):
        store.read_into(DIGEST, 0, bytearray(1))
    staged.seal(DIGEST)
    assert everything(store) == CONTENT


def test_a_seal_survives_the_end_of_the_store(open_store):
    stored(open_store())
    assert everything(open_store()) == CONTENT


def test_writes_of_any_kind_and_size_are_put_together(open_store):
    store = open_store()
    staged = store.stage()
    for part in (CONTENT[:1], bytearray(CONTENT[1:5]), b"", memoryview(CONTENT)[5:]):
        staged.write(part)
    staged.seal(DIGEST)
    assert everything(store) == CONTENT


@pytest.mark.parametrize("after", ["nothing", "some bytes", "the seal"])
def test_discarding_leaves_nothing_but_what_was_sealed(place, after):
    store = place.open_store()
    staged = store.stage()
    if after != "nothing":
        staged.write(CONTENT)
    if after == "the seal":
        staged.seal(DIGEST)
    staged.discard()
    staged.discard()
    assert store.size(DIGEST) == (len(CONTENT) if after == "the seal" else None)
    assert len(place.everything()) == (after == "the seal")


def test_the_same_bytes_may_be_sealed_twice(place):
    store = place.open_store()
    first, second = store.stage(), store.stage()
    for staged in (first, second):
        staged.write(CONTENT)
    first.seal(DIGEST)
    second.seal(DIGEST)
    assert everything(store) == CONTENT
    assert len(place.everything()) == 1
    assert list(store.digests()) == [DIGEST]


@pytest.mark.parametrize(("offset", "length"), [(0, len(CONTENT) + 1), (len(CONTENT), 1), (10**9, 1)])
def test_a_short_read_is_corruption_not_fewer_bytes(open_store, offset, length):
    store = open_store()
    stored(store)
    with pytest.raises(StorageCorrupt):
        store.read_into(DIGEST, offset, bytearray(length))


def test_a_part_is_read_from_anywhere(open_store):
    store = open_store()
    stored(store)
    buffer = bytearray(7)
    store.read_into(DIGEST, 1000, buffer)
    assert buffer == CONTENT[1000:1007]
    store.read_into(DIGEST, 5, bytearray(0))


def test_what_a_crash_left_behind_is_gone_after_the_next_start(place):
    staged = place.open_store().stage()
    staged.write(CONTENT)  # and then the process dies
    assert len(place.everything()) == 1
    store = place.open_store()
    assert place.everything() == []
    assert store.size(DIGEST) is None
    staged.discard()


def test_a_deleted_blob_is_gone_and_deleting_it_again_is_no_error(open_store):
    store = open_store()
    stored(store)
    store.delete(DIGEST)
    store.delete(DIGEST)
    assert store.size(DIGEST) is None
    with pytest.raises(StorageCorrupt):
        store.read_into(DIGEST, 0, bytearray(1))
    assert list(store.digests()) == []


def test_what_was_deleted_is_gone_though_it_has_been_read_and_may_come_again(open_store):
    store = open_store()
    stored(store)
    assert everything(store) == CONTENT
    store.delete(DIGEST)
    with pytest.raises(StorageCorrupt):
        store.read_into(DIGEST, 0, bytearray(1))
    stored(store)
    assert everything(store) == CONTENT


def test_a_healthy_store_passes_its_check_and_keeps_nothing_of_it(place):
    place.open_store().check()
    assert place.everything() == []


def written(part):
    """All that was written to a part, by whomever."""
    found, buffer = b"", bytearray(1000)
    while count := part.read_into(len(found), buffer):
        found += buffer[:count]
    return found


def test_a_part_that_pauses_goes_on_in_the_next_life_of_the_store(place):
    part = place.open_store().part("upload-1")
    part.write(CONTENT[:3000])
    part.close()
    store = place.open_store()
    assert (store.part_bytes("upload-1"), store.parts()) == (3000, ["upload-1"])
    part = store.part("upload-1")
    assert written(part) == CONTENT[:3000]
    part.write(CONTENT[3000:5000])
    part.close()
    part = store.part("upload-1")
    part.write(CONTENT[5000:])
    assert written(part) == CONTENT
    part.seal(DIGEST)
    assert everything(store) == CONTENT
    assert (store.part_bytes("upload-1"), store.parts(), len(place.everything())) == (0, [], 1)


def test_a_part_is_named_and_measured_while_it_is_written(open_store):
    store = open_store()
    assert (store.part_bytes("upload-1"), store.parts()) == (0, [])
    part = store.part("upload-1")
    assert (store.part_bytes("upload-1"), store.parts()) == (0, ["upload-1"])
    part.write(CONTENT)
    assert (store.part_bytes("upload-1"), store.parts()) == (len(CONTENT), ["upload-1"])
    assert store.part_bytes("upload-10") == store.part_bytes("upload") == 0
    part.discard()


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("by", ["its writer", "name"])
def test_a_part_that_is_discarded_leaves_nothing_but_other_parts(place, paused, by):
    store = place.open_store()
    other = store.part("upload-10")
    other.write(CONTENT)
    other.close()
    before = place.everything()
    part = store.part("upload-1")
    part.write(CONTENT)
    if paused or by == "name":
        part.close()
    if by == "name":
        store.discard_part("upload-1")
    else:
        if paused:
            part = store.part("upload-1")
        part.discard()
    store.discard_part("upload-1")
    assert place.everything() == before
    assert (store.part_bytes("upload-1"), store.parts()) == (0, ["upload-10"])
    part = store.part("upload-1")
    assert written(part) == b""
    part.discard()


@pytest.mark.parametrize("name", ["", "a/b", "..", "a" * 101])
def test_a_name_that_could_be_a_path_names_no_part(open_store, name):
    store = open_store()
    for ask in (store.part, store.part_bytes, store.discard_part):
        with pytest.raises(ValueError, match="names no part"):
            ask(name)


@pytest.fixture
def disk(tmp_path, require_part):
    with a_small_disk(tmp_path / "disk", 1024 * 1024, require_part) as disk:
        yield disk


def test_a_full_disk_is_named_as_such_and_keeps_nothing_of_what_did_not_fit(disk):
    store = FileBlobs(disk.path)
    stored(store)
    before = disk.names()
    disk.fill(leaving_bytes=2 * 4096)
    staged = store.stage()
    with pytest.raises(StorageNotWritable, match="the server's disk is full: No space left on device"):
        staged.write(bytes(3 * 4096))
    staged.discard()
    assert disk.names() == before
    disk.fill()
    with pytest.raises(StorageNotWritable, match="full"):
        store.check()
    assert disk.names() == before
    assert everything(store) == CONTENT
    disk.make_room()
    store.check()
    stored(store, CONTENT * 2)


def test_a_read_only_disk_is_named_as_such_and_is_used_again_once_it_is_not(disk):
    store = FileBlobs(disk.path)
    stored(store)
    before = disk.names()
    staged = store.stage()
    staged.write(CONTENT)
    disk.make_read_only()
    for action in (store.stage, store.check, lambda: staged.seal("0" * 64), lambda: store.delete(DIGEST)):
        with pytest.raises(StorageNotWritable, match="the server's disk is read-only: Read-only file system"):
            action()
    staged.discard()
    with pytest.raises(StorageNotWritable, match="read-only"):
        FileBlobs(disk.path)
    assert everything(store) == CONTENT
    disk.make_writable()
    store.check()
    assert disk.names() == before, "the trace that could not be removed is gone"


SEAL = """
import sys
from pathlib import Path
from ps_service.storage.files import FileBlobs
store = FileBlobs(Path(sys.argv[1]))
staged = store.stage()
staged.write(b"x" * 100)
staged.seal(sys.argv[2])
"""


def test_a_seal_is_file_fsync_then_rename_then_directory_fsync(tmp_path, require_part):
    require_part(shutil.which("strace") is not None, "strace")
    digest = "ab" * 32
    FileBlobs(tmp_path)
    trace = tmp_path / "trace"
    traced = "trace=openat,fsync,rename,renameat,renameat2"
    command = ["strace", "-f", "-y", "-e", traced, "-o", str(trace), sys.executable, "-c", SEAL]
    done = subprocess.run([*command, str(tmp_path), digest], capture_output=True, text=True, timeout=120)
    if not trace.exists() or "PTRACE" in done.stderr or "ptrace" in done.stderr:
        require_part(False, "permission to trace a process")
    assert done.returncode == 0, done.stderr
    lines = trace.read_text().splitlines()
    staging = next(i for i, line in enumerate(lines) if "fsync(" in line and "/staging/" in line)
    rename = next(i for i, line in enumerate(lines) if "rename" in line and digest in line)
    directory = next(i for i, line in enumerate(lines) if "fsync(" in line and line.count("/blobs/ab>"))
    assert staging < rename < directory
