# SPDX-License-Identifier: Apache-2.0
"""What is bounded before a route sees a request: how many come from an address, and JSON bodies.

Tensor messages have limits of their own.
"""

import asyncio
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protocol.errors import FedSophiaError, MessageTooLarge, TooManyRequests, UploadInterrupted
from ps_service.metrics import Meters
from ps_service.rates import Rates
from ps_service.routes.problems import answer

SHORT_BYTES = 64 * 1024
MAY_BE_RAISED = "; the server's FED_SOPHIA_MAX_JSON_BYTES says how long it may be"
LONG = ("/v1/runs", "/v1/runs/import")
"""Where operators send specs and histories; all other bodies, and those of others, are short."""


TENSORS = ("PUT", "PATCH")
"""These carry tensor messages and parts of them, and nothing else."""


PROBES = ("/healthz", "/readyz")
"""Whoever looks after the server asks these, and must hear the truth of a server that is flooded."""


class AddressRate:
    """ASGI middleware: before anything else is done, an address that asks too often is answered 429."""

    def __init__(self, app: ASGIApp, rates: Rates, meters: Meters) -> None:
        self._app = app
        self._rates = rates
        self._meters = meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        if scope["type"] == "http" and client and scope["path"] not in PROBES:
            try:
                self._rates.of_address(client[0])
            except TooManyRequests as error:
                self._meters.refusals.labels(code=error.code).inc()
                await answer(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class JsonBodyLimit:
    """ASGI middleware: a JSON body longer than the limit is answered 413, one that takes too long 408.

    Short where anybody may send one: validation keeps an error for each field that it does not know, and many
    who each hold a long one open would fill the memory.

    Told by the method, which a caller cannot choose freely: what it says of its media type is its own.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int,
        timeout_s: float,
        meters: Meters,
        is_operator: Callable[[Request], Awaitable[bool]],
    ) -> None:
        self._app = app
        self._is_operator = is_operator
        self._meters = meters
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in TENSORS:
            await self._app(scope, receive, send)
            return
        error: FedSophiaError
        most, remedy = self._max_bytes, MAY_BE_RAISED
        try:
            if most > SHORT_BYTES and not (scope["path"] in LONG and await self._is_operator(Request(scope))):
                most, remedy = SHORT_BYTES, ""
            async with asyncio.timeout(self._timeout_s):
                body = await _whole(receive, most)
        except TimeoutError:
            error = UploadInterrupted(f"the body was not whole within {self._timeout_s:g} s")
        except FedSophiaError as met:
            error = met
        else:
            if body is None:
                return
            if len(body) <= most:
                await self._app(scope, _replay(body, receive), send)
                return
            error = MessageTooLarge(f"the body is longer than {most} bytes{remedy}")
        self._meters.refusals.labels(code=error.code).inc()
        await answer(error)(scope, receive, send)


async def _whole(receive: Receive, most: int) -> bytes | None:
    """The whole body, or what came of it where that is more than `most`; None when the sender went away."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if len(body) > most or not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give the body that was read as one message, then whatever else comes."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
