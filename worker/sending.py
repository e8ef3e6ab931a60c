# SPDX-License-Identifier: Apache-2.0
"""Connections by httpx, and how a request is sent on them."""

import ssl
from types import TracebackType
from typing import Self

import httpx

from worker.options import Trust
from worker.tls import tls_of

CONNECT_TIMEOUT_S = 10.0
SILENCE_TIMEOUT_S = 60.0
"""Longest pause between two bytes, either way."""
KEEPALIVE_S = 4.0
"""Idle connections are dropped before the usual server (5 s) drops them under a request."""

Transport = httpx.AsyncBaseTransport

_ASKED_OF_A_SOCKET = ("family", "getpeername", "getsockname")


async def send(http: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
    """Send a request and give its answer, unread.

    Raises:
        httpx.TransportError: there is none.
    """
    try:
        return await http.send(request, stream=True)
    except AttributeError as error:
        # closed as it was made, a connection has no socket under uvloop; httpx asks it for its peer
        if error.obj is not None or error.name not in _ASKED_OF_A_SOCKET:
            raise
        raise httpx.ConnectError("the connection was closed as it was made") from error


class Connections:
    """What a client of ours speaks on, redirected by nobody; an async context manager."""

    def __init__(
        self,
        transport: Transport | None,
        tls: ssl.SSLContext | None,
        max_connections: int,
        base_url: str = "",
    ) -> None:
        """Args: tls: None believes the CAs of the system."""
        self._http = httpx.AsyncClient(
            base_url=base_url,
            headers={"Accept-Encoding": "identity"},
            timeout=timeout(SILENCE_TIMEOUT_S),
            limits=httpx.Limits(max_connections=max_connections, keepalive_expiry=KEEPALIVE_S),
            verify=tls or tls_of(Trust()),
            transport=transport,
            follow_redirects=False,
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.__aexit__(kind, error, traceback)


def timeout(read_s: float) -> httpx.Timeout:
    return httpx.Timeout(SILENCE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, read=read_s)
