# SPDX-License-Identifier: Apache-2.0
"""The operator's half of the HTTP API, `docs/reference/http-api.md`.

The only file of the command line that knows URLs and httpx. A refusal arrives as the error class
that its code names; no answer at all is `ServerUnreachable`.
"""

import asyncio
import gzip
import hashlib
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel

from fed_sophia.answers import (
    JoinTokens,
    OperatorKeys,
    Rounds,
    Runs,
    Versions,
    Workers,
    WorkersInRound,
    error_in,
    parsed,
)
from fed_sophia.event_stream import ServerEvent, read_events
from fed_sophia.options import server_address
from protocol.codec import MEDIA_TYPE, digest_of
from protocol.errors import (
    DigestMismatch,
    FedSophiaError,
    InvalidUsage,
    NotFound,
    ServerUnreachable,
    UnexpectedAnswer,
)
from protocol.messages import (
    JoinTokenIssued,
    JoinTokenRequest,
    JoinTokenSummary,
    RoundSummary,
    RunSpec,
    RunSummary,
    VersionSummary,
    WorkerInRound,
    WorkerSummary,
    parse,
)
from protocol.operator_keys import OperatorKeyIssued, OperatorKeyRequest, OperatorKeySummary
from protocol.run_archive import RunArchive
from worker.options import Trust
from worker.tls import reason_of_silence, tls_of, tls_problem

M = TypeVar("M", bound=BaseModel)
R = TypeVar("R")

Arriving = tuple[int, AsyncIterator[bytes]]
"""A body's length in bytes, and its chunks."""

_TIMEOUT_S = 30.0
_PAGE = 1000  # rows; the most that the server gives at once
_SILENCE_S = 45.0  # three of the comment lines by which the server keeps an event stream alive


class OperatorClient:
    """What an operator may ask of a parameter server."""

    def __init__(
        self,
        server_url: str,
        operator_key: str,
        transport: httpx.AsyncBaseTransport | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Args: tls: None believes the CAs of the system."""
        self.server_url = server_address(server_url).rstrip("/")
        try:
            self._http = httpx.AsyncClient(
                base_url=self.server_url,
                headers={"Authorization": f"Bearer {operator_key}"},
                timeout=_TIMEOUT_S,
                transport=transport,
                verify=tls or tls_of(Trust()),
            )
        except httpx.InvalidURL as error:
            raise InvalidUsage(f"server {self.server_url!r}: {error}") from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def create_token(self, request: JoinTokenRequest) -> JoinTokenIssued:
        return _parsed(JoinTokenIssued, await self._send("POST", "/v1/tokens", said=request))

    async def tokens(self) -> tuple[JoinTokenSummary, ...]:
        return _parsed(JoinTokens, await self._send("GET", "/v1/tokens")).tokens

    async def revoke_token(self, token_id: str) -> None:
        await self._send("DELETE", f"/v1/tokens/{_part(token_id)}")

    async def create_key(self, request: OperatorKeyRequest) -> OperatorKeyIssued:
        return _parsed(OperatorKeyIssued, await self._send("POST", "/v1/keys", said=request))

    async def keys(self) -> tuple[OperatorKeySummary, ...]:
        return _parsed(OperatorKeys, await self._send("GET", "/v1/keys")).keys

    async def revoke_key(self, key_id: str) -> None:
        await self._send("DELETE", f"/v1/keys/{_part(key_id)}")

    async def approve_worker(self, worker_id: str) -> None:
        await self._send("POST", f"/v1/workers/{_part(worker_id)}/approve")

    async def release_worker(self, worker_id: str) -> None:
        await self._send("POST", f"/v1/workers/{_part(worker_id)}/release")

    async def revoke_worker(self, worker_id: str) -> None:
        await self._send("DELETE", f"/v1/workers/{_part(worker_id)}")

    async def workers(self) -> tuple[WorkerSummary, ...]:
        return await self._all_rows(
            Workers, "/v1/workers", lambda page: page.workers, lambda worker: worker.worker_id
        )

    async def put_tensors(self, message: Sequence[memoryview]) -> str:
        """Store a `state` message; give its digest."""
        digest = digest_of(message)

        async def body() -> AsyncIterator[bytes]:
            for buffer in message:
                for start in range(0, buffer.nbytes, 1 << 20):
                    yield bytes(buffer[start : start + (1 << 20)])

        await self.put_tensor_chunks(digest, sum(buffer.nbytes for buffer in message), body())
        return digest

    async def put_tensor_chunks(self, digest: str, size_bytes: int, chunks: AsyncIterator[bytes]) -> None:
        """Store a `state` message of this digest and length."""
        headers = {"Content-Type": MEDIA_TYPE, "Content-Length": str(size_bytes)}
        await self._send("PUT", f"/v1/tensors/{digest}", content=chunks, headers=headers)

    async def has_tensors(self, digest: str) -> bool:
        """Whether the server has stored this message already; False where it does not say."""
        try:
            await self._send("HEAD", f"/v1/tensors/{digest}")
        except (NotFound, UnexpectedAnswer):  # the answer to HEAD has no body that could name the problem
            return False
        return True

    async def create_run(self, spec: RunSpec) -> RunSummary:
        return _parsed(RunSummary, await self._send("POST", "/v1/runs", said=spec))

    async def import_run(self, archive: RunArchive) -> RunSummary:
        """Make a run of an archive whose tensors the server has."""
        body = gzip.compress(archive.model_dump_json().encode(), 6)
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        answer = await self._send("POST", "/v1/runs/import", content=body, headers=headers)
        return _parsed(RunSummary, answer)

    async def metrics(self) -> str:
        """What the server measures of itself, in Prometheus text format."""
        return (await self._send("GET", "/metrics")).text

    async def runs(self) -> tuple[RunSummary, ...]:
        return await self._all_rows(Runs, "/v1/runs", lambda page: page.runs, lambda run: run.run_id)

    async def run(self, run_id: str) -> RunSummary:
        return _parsed(RunSummary, await self._send("GET", f"/v1/runs/{run_id}"))

    async def pause(self, run_id: str) -> RunSummary:
        return _parsed(RunSummary, await self._send("POST", f"/v1/runs/{run_id}/pause"))

    async def resume(self, run_id: str) -> RunSummary:
        return _parsed(RunSummary, await self._send("POST", f"/v1/runs/{run_id}/resume"))

    async def cancel(self, run_id: str) -> RunSummary:
        return _parsed(RunSummary, await self._send("POST", f"/v1/runs/{run_id}/cancel"))

    async def rounds(self, run_id: str, after: int = 0) -> tuple[RoundSummary, ...]:
        path = f"/v1/runs/{run_id}/rounds"
        return await self._all_rows(
            Rounds, path, lambda page: page.rounds, lambda round_: round_.round, after
        )

    async def workers_in_round(self, run_id: str, number: int) -> tuple[WorkerInRound, ...]:
        path = f"/v1/runs/{run_id}/rounds/{number}/workers"
        return await self._all_rows(
            WorkersInRound, path, lambda page: page.workers, lambda worker: worker.slot
        )

    async def versions(self, run_id: str) -> tuple[VersionSummary, ...]:
        path = f"/v1/runs/{run_id}/versions"
        return await self._all_rows(
            Versions, path, lambda page: page.versions, lambda version: version.version
        )

    async def tensors(self, run_id: str, digest: str) -> bytes:
        """Fetch one bundle of the run's state; raises as `tensor_chunks`."""
        async with self.tensor_chunks(run_id, digest) as (_, chunks):
            return b"".join([chunk async for chunk in chunks])

    @asynccontextmanager
    async def tensor_chunks(self, run_id: str, digest: str) -> AsyncIterator[Arriving]:
        """One bundle of the run's state as it arrives.

        Raises:
            DigestMismatch: what arrived, read to its end, is not what the digest names.
        """
        path = f"/v1/runs/{run_id}/tensors/{digest}"
        async with self._stream(path, {"Accept-Encoding": "identity"}) as answer:
            length = answer.headers.get("Content-Length", "")
            if not length.isdecimal():
                raise UnexpectedAnswer(f"{path} answered without a Content-Length")
            yield int(length), _checked(answer.aiter_bytes(1 << 20), digest)

    async def events(self, run_id: str, max_failures: int = 10) -> AsyncGenerator[ServerEvent, None]:
        """Everything that happens in a run, from its beginning, over as many connections as it takes.

        Raises:
            FedSophiaError: what the last of so many attempts in a row met, or what no other attempt mends.
        """
        last_id, ended, failures = "", False, 0
        met: FedSophiaError | None = None
        while failures < max_failures:
            try:
                async with aclosing(self._events_after(run_id, last_id)) as events:
                    async for event in events:
                        last_id, failures = event.id or last_id, 0
                        if event.kind == "run":
                            ended = parse(RunSummary, event.data).status.ended
                        yield event
                if ended:
                    return
            except FedSophiaError as error:
                if not error.retryable:
                    raise
                met = error
            failures += 1
            await asyncio.sleep(min(0.1 * 2**failures, 5.0))
        kind, why = (type(met), f": {met.detail}") if met else (ServerUnreachable, "")
        raise kind(f"{self.server_url}: {max_failures} attempts to follow the run failed{why}")

    async def _events_after(self, run_id: str, last_id: str) -> AsyncGenerator[ServerEvent, None]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
        path = f"/v1/runs/{run_id}/events"
        async with (
            self._stream(path, headers, _SILENCE_S) as answer,
            aclosing(read_events(answer.aiter_lines())) as events,
        ):
            async for event in events:
                yield event

    @asynccontextmanager
    async def _stream(
        self, path: str, headers: dict[str, str], silence_s: float = _TIMEOUT_S
    ) -> AsyncIterator[httpx.Response]:
        timeout = httpx.Timeout(_TIMEOUT_S, read=silence_s)
        try:
            async with self._http.stream("GET", path, headers=headers, timeout=timeout) as answer:
                if answer.is_error:
                    await answer.aread()
                    raise _error_in(answer)
                yield answer
        except (httpx.TransportError, ssl.SSLError) as error:
            raise tls_problem(error, self.server_url) or ServerUnreachable(
                f"{self.server_url}: {type(error).__name__}"
            ) from None

    async def _all_rows(
        self,
        message: type[M],
        path: str,
        rows_of: Callable[[M], tuple[R, ...]],
        key_of: Callable[[R], str | int],
        after: str | int | None = None,
    ) -> tuple[R, ...]:
        """Every row of a list, page by page; a server that does not know pages gives them all at once."""
        rows: dict[str | int, R] = {}
        while True:
            query = f"limit={_PAGE}" + ("" if after is None else f"&after={after}")
            page = rows_of(_parsed(message, await self._send("GET", f"{path}?{query}")))
            new = {key_of(row): row for row in page if key_of(row) not in rows}
            rows |= new
            if not new or len(page) < _PAGE:
                return tuple(rows.values())
            after = key_of(page[-1])

    async def _send(
        self,
        method: str,
        path: str,
        *,
        said: BaseModel | None = None,
        content: bytes | AsyncIterator[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        body = content
        if said is not None:
            body, headers = said.model_dump_json().encode(), {"Content-Type": "application/json"}
        try:
            answer = await self._http.request(method, path, content=body, headers=headers)
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise InvalidUsage(f"server {self.server_url!r}: {error}") from None
        except (httpx.TransportError, ssl.SSLError) as error:
            raise tls_problem(error, self.server_url) or ServerUnreachable(
                f"{self.server_url}: no answer ({type(error).__name__}); is the server running?"
                + reason_of_silence(error, self.server_url)
            ) from None
        if not answer.is_success:
            raise _error_in(answer)
        return answer


def _part(identifier: str) -> str:
    return quote(identifier, safe="")


async def _checked(chunks: AsyncIterator[bytes], digest: str) -> AsyncIterator[bytes]:
    sha256 = hashlib.sha256()
    async for chunk in chunks:
        sha256.update(chunk)
        yield chunk
    if (received := sha256.hexdigest()) != digest:
        raise DigestMismatch(f"expected tensors {digest[:12]}…, received {received[:12]}…")


def _parsed(message: type[M], answer: httpx.Response) -> M:
    return parsed(message, answer.content, answer.request.url.path)


def _error_in(answer: httpx.Response) -> FedSophiaError:
    where = f"{answer.request.method} {answer.request.url.path}"
    return error_in(answer.content, f"{where} answered {answer.status_code}")
