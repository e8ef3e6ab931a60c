# SPDX-License-Identifier: Apache-2.0
"""Which requests workers make of the object store itself, in runs that let them.

Where no address can be signed for the moment, bytes pass through the server as in any other run.
"""

import asyncio
import logging
import re
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from protocol.errors import StorageUnavailable
from protocol.messages import StoreRequest
from ps_service.storage import Stores
from ps_service.storage.existing import the_run
from ps_service.storage.run_records import StoredRun
from ps_service.storage.update_records import StoredUpload
from ps_service.troubles import Troubles

log = logging.getLogger("fed_sophia.storage")

T = TypeVar("T")

MOST_RUNS = 1_000
MOST_ASSIGNMENTS = 100_000
MOST_DECLARED = 2
"""Different updates for one assignment that are let into the store: what comes of those that were replaced
lies there until a sweep, and no limit of a run's disk knows of it."""
_SIGNING = "signing addresses of the object store"


class Presigned:
    """The addresses that one server gives away."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self._addresses = stores.blobs.addresses
        self._troubles = Troubles(log)
        self._declared: OrderedDict[str, set[str]] = OrderedDict()  # {assignment: digests}
        self._runs: OrderedDict[str, bool] = OrderedDict()  # whether they let workers, which does not change

    async def upload(self, run: StoredRun, upload: StoredUpload, offset: int) -> StoreRequest | None:
        """The request that puts a body into the store; None: it is sent to the server.

        Args: offset: so much of it has come to the server already.
        """
        addresses, header = self._addresses, upload.header
        if addresses is None or not run.spec.presigned or offset or header.size_bytes > addresses.most_bytes:
            return None
        declared = self._declared.setdefault(upload.assignment_id, set())
        if len(declared | {header.digest}) > MOST_DECLARED:
            return None
        declared.add(header.digest)
        if len(self._declared) > MOST_ASSIGNMENTS:
            self._declared.popitem(last=False)
        return await self._signed(
            partial(addresses.upload, upload.upload_id, header.digest, header.size_bytes)
        )

    async def download(self, run_id: str, digest: str) -> str | None:
        """The address of a message in the store; None: the server sends it."""
        if self._addresses is None or not await self._lets(run_id):
            return None
        return await self._signed(partial(self._addresses.download, digest))

    async def _signed(self, sign: Callable[[], T]) -> T | None:
        try:
            signed = await asyncio.to_thread(sign)
        except StorageUnavailable as error:
            self._troubles.failed(_SIGNING, error)
            return None
        self._troubles.worked(_SIGNING)
        return signed

    async def _lets(self, run_id: str) -> bool:
        if run_id not in self._runs:
            async with self._stores.records.glance() as connection:
                self._runs[run_id] = (await the_run(connection, run_id)).spec.presigned
            if len(self._runs) > MOST_RUNS:
                self._runs.popitem(last=False)
        return self._runs[run_id]


def prefers_presigned(prefer: str) -> bool:
    """Whether a `Prefer` header (RFC 7240) says that its sender takes another address."""
    return re.search(r"(?:^|[,;\s])presigned(?:$|[,;\s])", prefer, re.IGNORECASE) is not None
