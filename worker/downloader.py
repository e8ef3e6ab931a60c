# SPDX-License-Identifier: Apache-2.0
"""Fetches a tensor message, and goes on where it was cut off as long as each attempt brings it further."""

from protocol.errors import DigestMismatch, ServerUnreachable
from worker.client import ServerClient
from worker.download import Download
from worker.store_client import StoreClient

LEAST_PROGRESS_BYTES = 64 * 1024
"""Whoever comes further by less than this waits before it tries again."""


class Downloader:
    """The way of global state to one worker. One message a time; the last one that was cut off is kept."""

    def __init__(self, client: ServerClient, store: StoreClient | None = None) -> None:
        """Args: store: takes messages from the server's object store, where the server says so."""
        self._client = client
        self._store = store
        self._cut_off: Download | None = None

    async def fetch(self, run_id: str, digest: str, at_most_bytes: int | None = None) -> memoryview:
        """Give the whole tensor message with this digest, read-only.

        Raises:
            ServerUnreachable: an attempt brought it no further; the next call goes on.
            DigestMismatch, MessageTooLarge: as `ServerClient.fetch_tensors`.
        """
        download, self._cut_off = self._cut_off, None
        if download is None or download.digest != digest:
            download = Download(digest)
        store = self._store
        while True:
            before = download.received_bytes
            try:
                found = await self._client.fetch_tensors(
                    run_id, download, at_most_bytes, elsewhere=store is not None
                )
                if isinstance(found, memoryview):
                    return found
                if store is not None and (message := await store.get(found, download, at_most_bytes)):
                    return message
                if download.received_bytes < before + LEAST_PROGRESS_BYTES:
                    store = None  # the server has it, too
            except DigestMismatch:
                if not download.from_store:
                    raise
                store = None  # once more, all of it from the server
                download.forget()
            except ServerUnreachable:
                if download.received_bytes < before + LEAST_PROGRESS_BYTES:
                    self._cut_off = download
                    raise
