# SPDX-License-Identifier: Apache-2.0
"""Blobs as objects, `blobs/ab/abcdef…`, in a store that any number of servers may share.

What is on its way in is written to a local spool, and goes to the object store when it is sealed: an object
is there whole, or not at all. What pauses goes there too, as `parts/<name>/<where it begins>-<random>`,
from which any server may go on; no object is ever changed or appended to. Two servers that have a part at
the same time leave objects that overlap: what is read of them is the bytes that follow one another from the
first, and the digest tells whether they are of one message.

A part is durable up to its last `close`. A server that is killed loses what it has written to it since: the
spool is no promise, and the next start empties it.
"""

import contextlib
import re
import secrets
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from threading import Lock

from protocol.errors import StorageCorrupt, StorageNotWritable, StorageUnavailable
from ps_service.storage.addresses import Addresses
from ps_service.storage.object_access import ObjectAccess, blob_key
from ps_service.storage.read_ahead import ReadAhead
from ps_service.storage.spool import Spool, SpoolFile

_DIGEST = re.compile(r"[0-9a-f]{64}")
_PART = re.compile(r"[A-Za-z0-9-]{1,100}")
_PAUSED = re.compile(r"([0-9]{20})-[0-9a-f]{16}")
_PROBE = "check"
"""One for all servers and all times: where it could not be deleted, no more than one is left."""
PAUSED_BYTES = 4 * 1024 * 1024
"""Of one object that a part pauses in: one request, and so much is in memory at a time."""
KNOWN_SIZES = 4096
"""Messages whose length is remembered: they do not change."""


class ObjectBlobs:
    """The blob contract on one object store; nobody else has the spool directory."""

    def __init__(
        self, objects: ObjectAccess, spool_directory: Path, addresses: Addresses | None = None
    ) -> None:
        """Raises: StorageNotWritable: the spool directory cannot be used."""
        self.objects = objects
        self.addresses = addresses
        self._spool = Spool(spool_directory)
        self._read_ahead = ReadAhead(self._fetch)
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._lock = Lock()
        self._writers: dict[str, PartObjects] = {}
        self._not_forgotten: set[str] = set()

    def stage(self) -> "StagedObject":
        return StagedObject(self, self._spool.open())

    def part(self, name: str) -> "PartObjects":
        """Raises: StorageNotWritable: also where what pauses cannot be fetched."""
        prefix = _prefix(name)
        if name in self._not_forgotten:
            self.forget_objects(prefix)
            self._not_forgotten.discard(name)
        file = self._spool.open()
        try:
            with _as_not_writable():
                fetched = self._fetch_part(prefix, file)
        except BaseException:
            file.remove()
            raise
        with self._lock:
            self._writers[name] = part = PartObjects(self, file, name, fetched)
        return part

    def part_bytes(self, name: str) -> int:
        """What the server's own writer has, else what pauses in the store."""
        writer = self._writers.get(name)
        if writer is not None:
            return writer.size_bytes
        if name in self._not_forgotten:
            return 0
        held_bytes = 0
        for start, size_bytes, _ in self._paused(_prefix(name)):
            if start > held_bytes:
                break
            held_bytes = max(held_bytes, start + size_bytes)
        return held_bytes

    def parts(self) -> list[str]:
        names = {key.split("/")[1] for key, _ in self.objects.list("parts") if key.count("/") == 2}
        with self._lock:
            names |= self._writers.keys()
        return [name for name in names if _PART.fullmatch(name)]

    def discard_part(self, name: str) -> None:
        prefix = _prefix(name)
        try:
            self.forget_objects(prefix)
            self._not_forgotten.discard(name)
        except StorageNotWritable:
            self._not_forgotten.add(name)  # `parts` still names it

    def forget_objects(self, prefix: str) -> None:
        """Raises: StorageNotWritable: some may be left."""
        with _as_not_writable():
            keys = [key for key, _ in self.objects.list(prefix)]
        self.objects.delete(keys)

    def writes_no_more(self, part: "PartObjects") -> None:
        with self._lock:
            if self._writers.get(part.name) is part:
                del self._writers[part.name]

    def size(self, digest: str) -> int | None:
        size_bytes = self.objects.size(blob_key(digest))
        if size_bytes is not None:
            self._know_size(digest, size_bytes)
        return size_bytes

    def read_into(self, digest: str, offset: int, buffer: bytearray | memoryview) -> None:
        """Raises: StorageCorrupt: missing or short; StorageUnavailable: the store does not give it."""
        view = memoryview(buffer)
        if not view:
            return
        size_bytes = self._sizes.get(digest)
        if size_bytes is None:
            size_bytes = self.size(digest)
        if size_bytes is None:
            raise StorageCorrupt(f"tensor message {digest} is missing")
        if offset + len(view) > size_bytes:
            raise StorageCorrupt(
                f"tensor message {digest}: {offset + len(view)} bytes expected, {size_bytes} found"
            )
        self._read_ahead.read_into(digest, size_bytes, offset, view)

    def digests(self) -> Iterator[str]:
        """What else lies in the store is none of ours."""
        for key, _ in self.objects.list("blobs"):
            digest = key.rpartition("/")[2]
            if _DIGEST.fullmatch(digest) and key == blob_key(digest):
                yield digest

    def delete(self, digest: str) -> None:
        self.forget(digest)
        self.objects.delete([blob_key(digest)])
        self.forget(digest)  # what was read meanwhile

    def check(self) -> None:
        """Raises: StorageNotWritable: the object store, or the disk of the spool, cannot be written to."""
        probe = self._spool.open()
        try:
            probe.write(bytes(4096))  # an empty file can be made on a full disk
            self.objects.put(_PROBE, probe.path)
            self.objects.delete([_PROBE])
        finally:
            probe.remove()

    def _fetch(self, digest: str, start: int, stop: int) -> memoryview:
        data = self.objects.read(blob_key(digest), start, stop)
        if data is None:
            self.forget(digest)
            raise StorageCorrupt(f"tensor message {digest} is missing")
        if len(data) != stop - start:
            self.forget(digest)
            raise StorageCorrupt(f"tensor message {digest}: {stop} bytes expected, {start + len(data)} found")
        return data

    def _know_size(self, digest: str, size_bytes: int) -> None:
        with self._lock:
            self._sizes[digest] = size_bytes
            self._sizes.move_to_end(digest)
            if len(self._sizes) > KNOWN_SIZES:
                self._sizes.popitem(last=False)

    def forget(self, digest: str) -> None:
        with self._lock:
            self._sizes.pop(digest, None)
        self._read_ahead.forget(digest)

    def _paused(self, prefix: str) -> list[tuple[int, int, str]]:
        """(where it begins, length, key) of the objects that a part pauses in, from the first byte on."""
        found = []
        for key, size_bytes in self.objects.list(prefix):
            matched = _PAUSED.fullmatch(key.rpartition("/")[2])
            if matched:
                found.append((int(matched[1]), size_bytes, key))
        return sorted(found)

    def _fetch_part(self, prefix: str, file: SpoolFile) -> bool:
        """Write what follows one another from the first byte; whether there was anything at all."""
        paused = self._paused(prefix)
        for start, size_bytes, key in paused:
            if start > file.size_bytes:
                break
            if start + size_bytes <= file.size_bytes:
                continue
            data = self.objects.read(key, file.size_bytes - start, size_bytes)
            if data is None:  # another has sealed or discarded the part meanwhile
                break
            file.write(data)
        return bool(paused)


class StagedObject:
    """A spool file that becomes an object."""

    def __init__(self, store: ObjectBlobs, file: SpoolFile) -> None:
        self._store = store
        self._file = file

    @property
    def size_bytes(self) -> int:
        return self._file.size_bytes

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._file.write(data)

    def seal(self, digest: str) -> None:
        self._store.objects.put(blob_key(digest), self._file.path)
        self._file.remove()

    def discard(self) -> None:
        self._file.remove()


class PartObjects(StagedObject):
    """A spool file whose bytes can be handed to another server."""

    def __init__(self, store: ObjectBlobs, file: SpoolFile, name: str, has_objects: bool) -> None:
        """Args: file: holds what the objects of the part do."""
        super().__init__(store, file)
        self.name = name
        self._has_objects = has_objects
        self._stored_bytes = file.size_bytes
        self._ended = False

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        return self._file.read_into(offset, buffer)

    def seal(self, digest: str) -> None:
        super().seal(digest)
        self._end()
        if self._has_objects:
            self._store.discard_part(self.name)

    def close(self) -> None:
        """Raises: StorageNotWritable: what the object store did not take is lost."""
        if self._ended:
            return
        try:
            while self._stored_bytes < self.size_bytes:
                stop = min(self._stored_bytes + PAUSED_BYTES, self.size_bytes)
                key = f"{_prefix(self.name)}/{self._stored_bytes:020d}-{secrets.token_hex(8)}"
                self._store.objects.put(key, self._file.read(self._stored_bytes, stop))
                self._stored_bytes = stop
        finally:
            self._end()
            self._file.remove()

    def discard(self) -> None:
        self._end()
        super().discard()
        self._store.discard_part(self.name)

    def _end(self) -> None:
        self._ended = True
        self._store.writes_no_more(self)


@contextlib.contextmanager
def _as_not_writable() -> Iterator[None]:
    """For what must be read before something can be written."""
    try:
        yield
    except StorageUnavailable as error:
        raise StorageNotWritable(error.detail) from error


def _prefix(name: str) -> str:
    if not _PART.fullmatch(name):
        raise ValueError(f"{name!r} names no part")
    return f"parts/{name}"
