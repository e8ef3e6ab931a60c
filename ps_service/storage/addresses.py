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
from dataclasses import dataclass, field
from datetime import timedelta
from threading import Lock
from typing import TYPE_CHECKING

import obstore
from obstore.store import HTTPStore, LocalStore, MemoryStore

from protocol.errors import StorageCorrupt, StorageNotWritable, StorageUnavailable
from protocol.updates import StoreRequest
from ps_service.storage.object_access import ObjectAccess, blob_key

if TYPE_CHECKING:
    from ps_service.storage.s3_signing import S3Signer

log = logging.getLogger("fed_sophia.storage")

GOOD_FOR_S = 900
"""A request that has begun by then goes on to its end."""
READ_BYTES = 8 * 1024 * 1024
"""Of what has arrived, in one request."""
_PROBE = "check-sha256"
_OF_AZURE = {"x-ms-blob-type": "BlockBlob"}


@dataclass
class Addresses:
    """Signs for one store."""

    objects: ObjectAccess
    kind: str
    """s3, gs or az."""
    signer: "S3Signer | None" = field(repr=False)
    """None: obstore signs, without headers."""
    most_bytes: int = 5 * 1000**3
    """Of one request: S3 takes 5 GiB."""
    _verifies: bool | None = None
    _lock: Lock = field(default_factory=Lock, repr=False)

    def verifies(self) -> bool:
        """Whether the store compares what it is sent with a digest. Found out once; blocks.

        Raises:
            StorageUnavailable: it cannot be told now.
        """
        with self._lock:
            if self._verifies is None:
                self._verifies = self._found_out()
            return self._verifies

    def upload(self, name: str, digest: str, size_bytes: int) -> StoreRequest:
        """A request that puts a message into the store.

        Args: name: of its upload.

        Raises:
            StorageUnavailable: no address can be signed now.
        """
        if self.signer is None or not self.verifies():
            headers = _OF_AZURE if self.kind == "az" else {}
            return StoreRequest(url=self._plain("PUT", _arrived(name)), headers=headers)
        from ps_service.storage.s3_signing import only_these_bytes

        headers = only_these_bytes(digest, size_bytes)
        url = self.signer.sign("PUT", self._plain("PUT", blob_key(digest)), headers, GOOD_FOR_S)
        return StoreRequest(url=url, headers=headers)

    def download(self, digest: str) -> str:
        """Raises: StorageUnavailable: no address can be signed now."""
        plain = self._plain("GET", blob_key(digest))
        return plain if self.signer is None else self.signer.sign("GET", plain, {}, GOOD_FOR_S)

    def arrived(self, name: str) -> "Arrived | None":
        """What was put there by a request that was signed for this upload; None: nothing.

        Raises:
            StorageNotWritable, StorageUnavailable: the store does not answer.
        """
        if self.objects.size(_arrived(name)) is None:
            return None
        copy = f"parts/{name}/copied-{secrets.token_hex(8)}"
        self.objects.copy(_arrived(name), copy)
        return Arrived(self.objects, copy, f"parts/{name}")

    def _plain(self, method: "obstore.HTTP_METHOD", key: str) -> str:
        assert not isinstance(self.objects.store, HTTPStore | LocalStore | MemoryStore)  # nor has it been
        with self.objects.naming(StorageUnavailable):
            return obstore.sign(self.objects.store, method, key, timedelta(seconds=GOOD_FOR_S))

    def _found_out(self) -> bool:
        from ps_service.storage.s3_signing import refuses_other_bytes

        signer = self.signer
        if signer is None:
            return False
        plain = self._plain("PUT", _PROBE)
        found = refuses_other_bytes(
            lambda headers: signer.sign("PUT", plain, headers, GOOD_FOR_S, public=False)
        )
        try:
            self.objects.delete([_PROBE])
        except StorageNotWritable as error:
            log.warning("%s: %s was not deleted", error.detail, _PROBE)
        if not found:
            log.warning(
                "%s does not compare what workers put there with its SHA-256: the server reads it once",
                self.objects.name,
            )
        return found


class Arrived:
    """A whole object, in a place where only the server writes: it is read, and then it is a message."""

    def __init__(self, objects: ObjectAccess, key: str, prefix: str) -> None:
        self._objects = objects
        self._key = key
        self._prefix = prefix
        self._size_bytes = objects.size(key) or 0
        self._start = 0
        self._ahead = memoryview(b"")

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        """Raises: StorageUnavailable: the store does not give it."""
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
        self._objects.copy(self._key, blob_key(digest))
        self.discard()

    def discard(self) -> None:
        with self._objects.naming(StorageUnavailable):
            keys = [key for key, _ in self._objects.list(self._prefix)]
        self._objects.delete(keys)

    def _read(self, start: int, stop: int) -> memoryview:
        data = self._objects.read(self._key, start, stop)
        if data is None or len(data) != stop - start:
            raise StorageCorrupt("the bytes that a worker put into the store are gone")
        return data


def _arrived(name: str) -> str:
    return f"parts/{name}/arrived"
