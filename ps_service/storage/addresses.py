# SPDX-License-Identifier: Apache-2.0
"""Requests that a worker makes of the object store itself, with addresses that the server has signed.

Where the store compares the bytes with their SHA-256, they are put under their digest at once: there can be
no others. Where it does not, they are put beside the parts of their upload, and the server reads them once,
from a copy that nobody else can write to, before they are a message.

An address is good for a while, for one object, and for one kind of request; whoever has it needs nothing
else, so it is shown to nobody but the worker.
"""

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from threading import Lock

import obstore
from obstore.store import HTTPStore, LocalStore, MemoryStore

from protocol.errors import SizeMismatch, StorageNotWritable, StorageUnavailable, UploadInterrupted
from protocol.updates import StoreRequest
from ps_service.storage import s3_signing
from ps_service.storage.object_access import ObjectAccess, blob_key
from ps_service.storage.s3_signing import S3Signer

log = logging.getLogger("fed_sophia.storage")

GOOD_FOR_S = 900
"""A request that has begun by then goes on to its end."""
READ_BYTES = 8 * 1024 * 1024
"""Of what has arrived, in one request."""
ASK_AGAIN_S = 10.0
"""Where it could not be told what the store does: nobody waits for it meanwhile."""
_OF_AZURE = {"x-ms-blob-type": "BlockBlob"}


@dataclass
class Addresses:
    """Signs for one store."""

    objects: ObjectAccess
    kind: str
    """s3, gs or az."""
    signer: S3Signer | None = field(repr=False)
    """None: obstore signs, without headers."""
    most_bytes: int = 5 * 1000**3
    """Of one request: S3 takes 5 GiB."""
    put: Callable[[str, dict[str, str], bytes], int] = s3_signing.put_by_http
    """How the server itself puts what it tries the store with; a test puts another in its place."""
    _verifies: bool | None = None
    _not_told_s: float | None = None
    _lock: Lock = field(default_factory=Lock, repr=False)

    def verifies(self) -> bool:
        """Whether the store compares what it is sent with a digest. Found out once; blocks.

        Raises:
            StorageUnavailable: it cannot be told now.
        """
        with self._lock:
            if self._verifies is None:
                if self._not_told_s is not None and time.monotonic() < self._not_told_s + ASK_AGAIN_S:
                    raise StorageUnavailable(f"{self.objects.name} takes no pre-signed requests now")
                try:
                    self._verifies = self._found_out()
                except StorageUnavailable:
                    self._not_told_s = time.monotonic()
                    raise
            return self._verifies

    def upload(self, name: str, digest: str, size_bytes: int) -> StoreRequest:
        """A request that puts a message into the store.

        Args: name: of its upload.

        Raises:
            StorageUnavailable: no address can be signed now.
        """
        if self.signer is None:
            headers = _OF_AZURE if self.kind == "az" else {}
            return StoreRequest(url=self._plain("PUT", _arrived(name)), headers=headers)
        if self.verifies():
            headers, key = s3_signing.only_these_bytes(digest, size_bytes), blob_key(digest)
        else:
            headers, key = s3_signing.only_so_many(size_bytes), _arrived(name)
        url = self.signer.sign("PUT", self._plain("PUT", key), headers, GOOD_FOR_S)
        return StoreRequest(url=url, headers=headers)

    def download(self, digest: str) -> str:
        """Raises: StorageUnavailable: no address can be signed now."""
        plain = self._plain("GET", blob_key(digest))
        return plain if self.signer is None else self.signer.sign("GET", plain, {}, GOOD_FOR_S)

    def arrived(self, name: str, size_bytes: int) -> "Arrived | None":
        """What was put there by a request that was signed for this upload; None: nothing.

        Raises:
            SizeMismatch: it has another length, and is thrown away.
            StorageNotWritable, StorageUnavailable: the store does not answer.
        """
        place = _arrived(name)
        found_bytes = self.objects.size(place)
        if found_bytes is None:
            return None
        if found_bytes != size_bytes:
            self.objects.delete([place])
            raise SizeMismatch(f"{size_bytes} bytes declared, {found_bytes} put into the store")
        copy = f"parts/{name}/copied-{secrets.token_hex(8)}"
        self.objects.copy(place, copy)
        return Arrived(self.objects, place, copy, size_bytes)

    def _plain(self, method: "obstore.HTTP_METHOD", key: str) -> str:
        assert not isinstance(self.objects.store, HTTPStore | LocalStore | MemoryStore)  # nor has it been
        with self.objects.naming(StorageUnavailable):
            return obstore.sign(self.objects.store, method, key, timedelta(seconds=GOOD_FOR_S))

    def _found_out(self) -> bool:
        signer = self.signer
        assert signer is not None
        probes = [f"check-sha256-{secrets.token_hex(8)}" for _ in range(2)]

        def put(probe: str, headers: dict[str, str], data: bytes) -> int:
            url = signer.sign("PUT", self._plain("PUT", probe), headers, GOOD_FOR_S, public=False)
            return self.put(url, headers, data)

        found = s3_signing.refuses_other_bytes([partial(put, probe) for probe in probes])
        try:
            self.objects.delete(probes)
        except StorageNotWritable as error:
            log.warning("%s: %s were not deleted", error.detail, " and ".join(probes))
        if not found:
            log.warning(
                "%s does not compare what workers put there with its SHA-256: the server reads it once",
                self.objects.name,
            )
        return found


class Arrived:
    """A copy of what a worker has put there, in a place where only the server writes."""

    def __init__(self, objects: ObjectAccess, origin: str, copy: str, size_bytes: int) -> None:
        self._objects = objects
        self._origin = origin
        self._copy = copy
        self._size_bytes = size_bytes
        self._start = 0
        self._ahead = memoryview(b"")

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        """Raises: UploadInterrupted: it is gone; StorageUnavailable: the store does not give it."""
        if not self._start <= offset < self._start + len(self._ahead):
            stop = min(offset + READ_BYTES, self._size_bytes)
            if stop <= offset:
                return 0
            self._start, self._ahead = offset, self._read(offset, stop)
        found = self._ahead[offset - self._start :][: len(buffer)]
        memoryview(buffer)[: len(found)] = found
        return len(found)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        raise StorageNotWritable("what a worker has put into the store is whole")

    def seal(self, digest: str) -> None:
        self._objects.copy(self._copy, blob_key(digest))
        if self._objects.size(blob_key(digest)) != self._size_bytes:  # there are stores that copy later
            raise StorageUnavailable(f"{self._objects.name} has not yet copied what a worker put there")
        self.discard()

    def let_go(self) -> None:
        """What was put there is looked at another time."""
        self._objects.delete([self._copy])

    def discard(self) -> None:
        self._objects.delete([self._copy, self._origin])

    def _read(self, start: int, stop: int) -> memoryview:
        data = self._objects.read(self._copy, start, stop)
        if data is None or len(data) != stop - start:
            raise UploadInterrupted("what was put into the store is gone; send it again")
        return data


def _arrived(name: str) -> str:
    return f"parts/{name}/arrived"
