# SPDX-License-Identifier: Apache-2.0
"""Named bytes in an object store: the few requests that blobs need, and their failures by name.

Loads obstore: a server that keeps its blobs in files does not load this module.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import from_url

from protocol.errors import FedSophiaError, InvalidUsage, StorageNotWritable, StorageUnavailable

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig, S3Config

CHUNK_BYTES = 5 * 1024 * 1024
"""Of a large object, sent by itself: the least that S3 takes."""
CHUNKS_AT_ONCE = 3
"""Of one object, each held in memory meanwhile."""
SILENT_S = 10.0
"""A store that has not answered a request for so long, or does not go on with its answer, has failed."""
_TIMEOUTS = {"connect_timeout": "3s", "read_timeout": f"{SILENT_S:.0f}s", "timeout": "60s"}
_RETRIES: "RetryConfig" = {"max_retries": 3, "retry_timeout": timedelta(seconds=SILENT_S)}


@dataclass(frozen=True)
class ObjectAccess:
    """One object store, or what lies under a prefix in it."""

    store: "ObjectStore" = field(repr=False)
    """Not shown: what it says of itself is not ours to know."""
    name: str
    """For errors: the bucket at most."""

    def put(self, key: str, data: Path | bytes) -> None:
        """Write an object whole, or leave what was there; it is durable when this has returned.

        Raises:
            StorageNotWritable: the store did not take it.
        """
        with self.naming(StorageNotWritable):
            obstore.put(self.store, key, data, chunk_size=CHUNK_BYTES, max_concurrency=CHUNKS_AT_ONCE)

    def delete(self, keys: Sequence[str]) -> None:
        """Forget these objects; no error for those that are not there.

        Raises:
            StorageNotWritable: the store did not do it.
        """
        with self.naming(StorageNotWritable):
            try:
                obstore.delete(self.store, keys)
            except FileNotFoundError:  # some stores say so, and may have left the others
                for key in keys:
                    with suppress(FileNotFoundError):
                        obstore.delete(self.store, key)

    def copy(self, key: str, to: str) -> None:
        """Make another object of the same bytes, without reading them here.

        Raises:
            StorageNotWritable: the store did not do it, or the first is not there.
        """
        with self.naming(StorageNotWritable):
            obstore.copy(self.store, key, to)

    def size(self, key: str) -> int | None:
        """Length in bytes, None if there is no such object.

        Raises:
            StorageUnavailable: the store does not tell.
        """
        with self.naming(StorageUnavailable):
            try:
                return obstore.head(self.store, key)["size"]
            except FileNotFoundError:
                return None

    def read(self, key: str, start: int, stop: int) -> memoryview | None:
        """Bytes start … stop-1, one at least, fewer if the object ends before; None if there is none.

        Raises:
            StorageUnavailable: the store does not give them, or the object ends before `start`.
        """
        with self.naming(StorageUnavailable):
            try:
                return memoryview(obstore.get(self.store, key, options={"range": (start, stop)}).bytes())
            except FileNotFoundError:
                return None

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Key and length of every object under a prefix, in any order.

        Raises:
            StorageUnavailable: the store does not tell.
        """
        with self.naming(StorageUnavailable):
            for batch in obstore.list(self.store, prefix):
                for found in batch:
                    yield found["path"], found["size"]

    @contextmanager
    def naming(self, kind: type[FedSophiaError]) -> Iterator[None]:
        """Name what goes wrong, in words of our own: those of the store may hold a signed address."""
        try:
            yield
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise kind(f"{self.name} refuses the server's credentials") from error
        except FileNotFoundError as error:
            raise kind(f"{self.name} does not exist") from error
        except (BaseError, OSError) as error:
            raise kind(f"{self.name} does not answer, or fails") from error


def blob_key(digest: str) -> str:
    """Where a message is readable."""
    return f"blobs/{digest[:2]}/{digest}"


def open_objects(
    url: str, client_options: Mapping[str, str], config: "S3Config | None" = None
) -> ObjectAccess:
    """The object store of a URL that obstore knows.

    Args:
        client_options: obstore's, over those that let a dead store be found out within seconds.
        config: whose the store is, and where; what it leaves out obstore reads from the environment.

    Raises:
        InvalidUsage: the URL names no store, or its environment lacks something.
    """
    options: ClientConfig = {**_TIMEOUTS, **client_options}  # type: ignore[typeddict-item]
    place = urlsplit(url)
    try:
        store = from_url(url, config=config, client_options=options, retry_config=_RETRIES)
    except (BaseError, ValueError) as error:
        raise InvalidUsage(
            f"{place.scheme}://{place.hostname or ''}: the object store cannot be used; its address, or what "
            "the environment says of it, is incomplete or wrong"
        ) from error
    return ObjectAccess(store, f"the object store {place.scheme}://{place.hostname}")
