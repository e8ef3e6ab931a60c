# SPDX-License-Identifier: Apache-2.0
"""What a worker exchanges with an object store itself, by addresses that its server has signed.

The law of this file: it has no credential, follows no redirect, sends no header but those that sign a body;
what comes is believed for its digest alone; nothing of an answer is told to the server. What fails here goes
through the server.
"""

import ssl
import time
from collections.abc import AsyncIterator, Mapping
from urllib.parse import urlsplit

import httpx

from protocol.addresses import speaks_tls
from protocol.errors import DigestMismatch, UnexpectedAnswer
from protocol.messages import StoreRequest
from worker.answers import announced
from worker.client import MAX_DOWNLOAD_BYTES
from worker.download import Download
from worker.sending import Connections, Transport, send

REST_S = 60.0
_NOT_DONE = (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError)
_SIGNING = {"content-length", "if-none-match", "x-amz-checksum-sha256", "x-ms-blob-type"}


class StoreClient(Connections):
    """One worker's way past the server; an async context manager."""

    def __init__(
        self,
        server_url: str,
        tls: ssl.SSLContext | None = None,
        transport: Transport | None = None,
        max_download_bytes: int = MAX_DOWNLOAD_BYTES,
    ) -> None:
        """Args:
        server_url: of the server whose addresses are taken; where it speaks TLS, they must.
        tls: None believes the CAs of the system.
        """
        self._only_tls = speaks_tls(server_url)
        self._max_download_bytes = max_download_bytes
        self._not_before_s = 0.0
        super().__init__(transport, tls, max_connections=2)

    async def put(self, request: StoreRequest, size_bytes: int, chunks: AsyncIterator[bytes]) -> bool:
        """Put a whole message there; False: the store has not taken it."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        if not self._is_taken(request.url) or headers.keys() - _SIGNING or not _is_ascii(headers):
            return False
        headers["content-length"] = str(size_bytes)
        try:
            putting = self._http.build_request("PUT", request.url, content=chunks, headers=headers)
            answer = await send(self._http, putting)
            await answer.aclose()
        except _NOT_DONE:
            self._rest()
            return False
        self._http.cookies.clear()
        return answer.is_success or answer.status_code == httpx.codes.PRECONDITION_FAILED  # it is there

    async def get(
        self, address: str, download: Download, at_most_bytes: int | None = None
    ) -> memoryview | None:
        """Give the whole message, read-only; None: the store has not given it, or not yet all of it.

        Raises:
            MessageTooLarge: it is more than this worker takes.
        """
        if not self._is_taken(address):
            return None
        limit = min(self._max_download_bytes, at_most_bytes or self._max_download_bytes)
        first = download.received_bytes
        headers = {"Range": f"bytes={first}-"} if first else {}
        try:
            answer = await send(self._http, self._http.build_request("GET", address, headers=headers))
            try:
                if answer.status_code not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
                    return None
                size_bytes, first = announced(answer.status_code, answer.headers, first, limit)
                download.from_store = True
                await download.take_all(size_bytes, first, answer.aiter_raw())
            finally:
                await answer.aclose()
                self._http.cookies.clear()
            return download.finished() if download.received_bytes == size_bytes else None
        except (*_NOT_DONE, UnexpectedAnswer):
            self._rest()
            return None
        except DigestMismatch:
            download.forget()
            return None

    def _rest(self) -> None:
        """Ask nothing for a while: who waits for what cannot be reached trains later."""
        self._not_before_s = time.monotonic() + REST_S

    def _is_taken(self, address: str) -> bool:
        if time.monotonic() < self._not_before_s:
            return False
        try:
            _ = urlsplit(address).port
        except ValueError:
            return False
        return address.isascii() and (speaks_tls(address) or not self._only_tls)


def _is_ascii(headers: Mapping[str, str]) -> bool:
    return all(value.isascii() and value.isprintable() for value in headers.values())
