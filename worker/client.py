# SPDX-License-Identifier: Apache-2.0
"""What a worker asks of the server. Only this file, `store_client` and `sending` know URLs and httpx.

The law of this file: every wait for the network has a time-out; every answer has a size limit; the
credential goes to one origin (no redirect is followed, no foreign upload address taken); and only
errors of `protocol.errors` leave it.
"""

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import NoReturn
from urllib.parse import quote

import httpx
from pydantic import BaseModel

from protocol.codec import MEDIA_TYPE, PART_MEDIA_TYPE
from protocol.errors import (
    InvalidUsage,
    NotReady,
    ServerUnreachable,
    Unauthenticated,
    UnexpectedAnswer,
)
from protocol.messages import (
    AccessToken,
    AccessTokenRequest,
    Assignment,
    Decline,
    Enrolled,
    Enrolment,
    EvaluationAssignment,
    Heartbeat,
    KeyRotation,
    MetricsReport,
    Receipt,
    RunStanding,
    UpdateHeader,
    UploadOffer,
)
from worker.answers import (
    NothingYet,
    announced,
    assignment_in,
    nothing_yet,
    number_in,
    parsed,
    wait_asked_for,
)
from worker.credentials import Credentials, Signer
from worker.download import Download
from worker.problems import error_of
from worker.sending import SILENCE_TIMEOUT_S, Connections, Transport, send, timeout
from worker.tls import reason_of_silence, tls_problem

MOST_IN_BUFFERS = 8 * 1024 * 1024
SLOWEST_BYTES_PER_S = 32 * 1024
"""A link slower than this may be given up and gone on with."""
SLOWEST_STORE = 4 * 1024 * 1024
"""Bytes a second that the server reads of its object store."""
LONG_POLL_MARGIN_S = 15.0
MAX_JSON_BYTES = 4 * 1024 * 1024
MAX_DOWNLOAD_BYTES = 8 * 1024**3
AS_NOBODY = {"Authorization": ""}
"""Of a request that proves who asks by what it holds."""


class ServerClient(Connections):
    """One worker's conversation with one server; an async context manager.

    Every method raises, beside what it names: `ServerUnreachable` when no answer came, `ServerNotTrusted`
    when it would have come from another than was meant, `UnexpectedAnswer` when it cannot be understood,
    and the error whose code a problem answer carries, caused by a `RetryAfter` when the answer had that
    header.
    """

    def __init__(
        self,
        base_url: str,
        transport: Transport | None = None,
        max_download_bytes: int = MAX_DOWNLOAD_BYTES,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Args:
        max_download_bytes: the longest tensor message that is taken.
        tls: None believes the CAs of the system.
        """
        self._origin = _checked_origin(base_url)
        self._credentials: Credentials | None = None
        self._max_download_bytes = max_download_bytes
        super().__init__(transport, tls, max_connections=8, base_url=self._origin)

    async def server_ca(self) -> bytes:
        """The certificate, as PEM, by which the server says that it is known."""
        _, body = await self._ask("GET", "/v1/ca", (200,))
        return body

    def authenticate(self, signer: Signer, worker_id: str) -> None:
        """Be this worker from now on."""
        self._credentials = Credentials(signer, worker_id, partial(self._access_token, worker_id))

    async def enrol(self, join_token: str, enrolment: Enrolment) -> Enrolled:
        """Become a worker of this server; with a known key, the same worker as before."""
        headers = {"Authorization": f"Bearer {join_token}"}
        _, body = await self._ask("POST", "/v1/workers", (200, 201), enrolment, headers=headers)
        return parsed(Enrolled, body)

    async def _access_token(self, worker_id: str, assertion: str) -> AccessToken:
        path, request = f"/v1/workers/{_part(worker_id)}/token", AccessTokenRequest(assertion=assertion)
        _, body = await self._ask("POST", path, (200,), request, headers=AS_NOBODY)
        return parsed(AccessToken, body)

    async def rotate_key(self, worker_id: str, rotation: KeyRotation) -> None:
        """Put a new key in the place of this worker's: `authenticate` anew afterwards."""
        await self._ask("POST", f"/v1/workers/{_part(worker_id)}/key", (204,), rotation)

    async def heartbeat(self, worker_id: str, heartbeat: Heartbeat) -> None:
        await self._ask("POST", f"/v1/workers/{_part(worker_id)}/heartbeat", (204,), heartbeat)

    async def next_assignment(
        self, worker_id: str, wait_s: float
    ) -> Assignment | EvaluationAssignment | NothingYet:
        """Wait on the server for something to do, at most `wait_s`.

        Raises:
            NotReady: the server sends its workers home and says when to come back.
        """
        path, headers = f"/v1/workers/{_part(worker_id)}/assignment", {"Prefer": f"wait={wait_s:g}"}
        silence_s = wait_s + LONG_POLL_MARGIN_S
        async with self._answer("GET", path, (200, 204), None, headers, silence_s) as response:
            if response.status_code != HTTPStatus.NO_CONTENT:
                return assignment_in(await _small_body(response))
            after = wait_asked_for(response.headers.get("Retry-After", ""))
            if after is not None:
                raise NotReady("the server has nothing to do and is stopping") from after
            return nothing_yet(response.headers.get("Next-Wait", ""))

    async def fetch_tensors(
        self,
        run_id: str,
        download: Download,
        at_most_bytes: int | None = None,
        *,
        elsewhere: bool = False,
    ) -> memoryview | str:
        """Give the whole tensor message, read-only; fetch what `download` does not hold of it yet.

        Args:
            download: holds what came before the connection broke.
            at_most_bytes: where the caller expects less than this client takes.
            elsewhere: whether an address in an object store will do; it is given in place of the message.

        Raises:
            DigestMismatch: the bytes that came are not those.
            MessageTooLarge: they are more than this worker takes.
        """
        path = f"/v1/runs/{_part(run_id)}/tensors/{_part(download.digest)}"
        limit = min(self._max_download_bytes, at_most_bytes or self._max_download_bytes)
        headers = {"Accept": MEDIA_TYPE}
        first = download.received_bytes
        if first:
            headers |= {"Range": f"bytes={first}-", "If-Range": f'"{download.digest}"'}
        if elsewhere:
            headers["Prefer"] = "presigned"
        expected = (200, 206, 307) if elsewhere else (200, 206)
        async with self._answer("GET", path, expected, headers=headers) as response:
            if response.status_code == HTTPStatus.TEMPORARY_REDIRECT:
                return str(response.headers.get("Location", ""))
            size_bytes, first = announced(response.status_code, response.headers, first, limit)
            await download.take_all(size_bytes, first, response.aiter_raw())
        if download.received_bytes < size_bytes:
            raise ServerUnreachable(f"the answer ended after {download.received_bytes} of {size_bytes} bytes")
        return download.finished()

    async def declare(self, assignment_id: str, header: UpdateHeader) -> UploadOffer | Receipt:
        """Announce an update: an offer to send its body, or the receipt if the server holds it already."""
        path = f"/v1/assignments/{_part(assignment_id)}/update"
        status, body = await self._ask("POST", path, (200, 201), header)
        return parsed(Receipt, body) if status == HTTPStatus.OK else parsed(UploadOffer, body)

    async def send_part(
        self, upload_url: str, first: int, size_bytes: int, chunks: AsyncIterator[bytes], *, whole: bool
    ) -> Receipt | int:
        """Send a part of the body of a declared update; give the receipt, or how many bytes are held.

        Args:
            first: where it begins in the body.
            size_bytes: how long it is.
            chunks: the part, about 1 MiB each.
            whole: the body ends with it.
        """
        headers = {
            "Content-Type": PART_MEDIA_TYPE,
            "Content-Length": str(size_bytes),
            "Upload-Offset": str(first),
            "Upload-Complete": "?1" if whole else "?0",
        }
        # what is on its way in buffers must arrive before an answer can come
        silence_s = SILENCE_TIMEOUT_S + min(size_bytes, MOST_IN_BUFFERS) / SLOWEST_BYTES_PER_S
        async with self._answer(
            "PATCH", _own_path(upload_url), (200, 204), chunks, headers, silence_s
        ) as response:
            if response.status_code == HTTPStatus.NO_CONTENT:
                return number_in(response.headers.get("Upload-Offset", ""), "Upload-Offset")
            return parsed(Receipt, await _small_body(response))

    async def stored(self, upload_url: str, size_bytes: int) -> Receipt:
        """Say that the body of a declared update is in the object store.

        Args: size_bytes: how long it is: the server may have to read it.

        Raises:
            UploadInterrupted: the server does not find it there.
        """
        path, silence_s = f"{_own_path(upload_url)}/stored", SILENCE_TIMEOUT_S + size_bytes / SLOWEST_STORE
        async with self._answer("POST", path, (200,), silence_s=silence_s) as response:
            return parsed(Receipt, await _small_body(response))

    async def decline(self, assignment_id: str, decline: Decline) -> None:
        await self._ask("POST", f"/v1/assignments/{_part(assignment_id)}/decline", (204,), decline)

    async def show_run(self, run_id: str) -> RunStanding:
        """Where a run stands that this worker has a part in."""
        _, body = await self._ask("GET", f"/v1/runs/{_part(run_id)}", (200,))
        return parsed(RunStanding, body)

    async def report_metrics(self, run_id: str, report: MetricsReport) -> None:
        await self._ask("POST", f"/v1/runs/{_part(run_id)}/metrics", (204,), report)

    async def _ask(
        self,
        method: str,
        path: str,
        expected: tuple[int, ...],
        content: BaseModel | AsyncIterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes]:
        async with self._answer(method, path, expected, content, headers) as response:
            return response.status_code, await _small_body(response)

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        expected: tuple[int, ...],
        content: BaseModel | AsyncIterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        silence_s: float = SILENCE_TIMEOUT_S,
    ) -> AsyncIterator[httpx.Response]:
        """Send one request and give its answer, unread; everything else becomes one of our errors."""
        all_headers = dict(headers or {})
        token = None
        if self._credentials is not None and "Authorization" not in all_headers:
            token = await self._credentials.token()
            all_headers["Authorization"] = f"Bearer {token}"
        elif all_headers.get("Authorization") == "":
            del all_headers["Authorization"]
        body: AsyncIterator[bytes] | bytes | None
        if isinstance(content, BaseModel):
            # without what is not said: a server of before refuses names that it does not know
            body = content.model_dump_json(exclude_none=True).encode()
            all_headers["Content-Type"] = "application/json"
        else:
            body = content
        try:
            request = self._http.build_request(
                method, path, content=body, headers=all_headers, timeout=timeout(silence_s)
            )
            response = await send(self._http, request)
            try:
                if response.status_code not in expected:
                    await self._refuse(response, token)
                yield response
            finally:
                await response.aclose()
        except (httpx.TransportError, ssl.SSLError) as error:  # of the second kind is an alert while reading
            why = f"{self._origin}: {type(error).__name__} {error}".rstrip()
            raise tls_problem(error, self._origin) or ServerUnreachable(
                why + reason_of_silence(error, self._origin)
            ) from None
        except httpx.InvalidURL as error:
            raise UnexpectedAnswer(f"the server named an address that is none: {error}") from None

    async def _refuse(self, response: httpx.Response, token: str | None) -> NoReturn:
        """Raise the error that an answer stands for which is not among those expected."""
        refusal = await _small_body(response)
        error = error_of(response.status_code, response.headers.get("Content-Type", ""), refusal)
        if isinstance(error, Unauthenticated) and token is not None and self._credentials is not None:
            # it has ended early; whether this worker gets another is for the server to say
            self._credentials.refused(token)
            error = ServerUnreachable("the server took the access token no more; another is asked for")
        raise error from wait_asked_for(response.headers.get("Retry-After", ""))


def _checked_origin(base_url: str) -> str:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL:
        raise InvalidUsage(f"server address {base_url!r}: not a URL") from None
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query:
        raise InvalidUsage(f"server address: expected http(s)://host[:port][/prefix], got {url.scheme!r} URL")
    return base_url.rstrip("/")


def _own_path(upload_url: str) -> str:
    if not upload_url.startswith("/") or upload_url.startswith("//"):
        raise UnexpectedAnswer("upload_url: expected a path on this server")
    return upload_url


def _part(identifier: str) -> str:
    return quote(identifier, safe="")


async def _small_body(response: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_JSON_BYTES:
            raise UnexpectedAnswer(f"an answer of more than {MAX_JSON_BYTES} bytes of JSON")
    return bytes(body)
