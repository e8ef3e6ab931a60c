# SPDX-License-Identifier: Apache-2.0
"""Bounds a JSON body before anything reads it. Tensor messages have limits of their own."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protocol.errors import MessageTooLarge
from ps_service.metrics import Meters
from ps_service.routes.problems import answer

SHORT_BYTES = 64 * 1024
MAY_BE_RAISED = "; the server's FED_SOPHIA_MAX_JSON_BYTES says how long it may be"
LONG = ("/v1/runs", "/v1/runs/import")
"""Where operators send specs and histories; all other bodies are short."""


TENSORS = ("PUT", "PATCH")
"""These carry tensor messages and parts of them, and nothing else."""


class JsonBodyLimit:
    """ASGI middleware: a JSON body longer than the limit is answered 413.

    Short where anybody may send one: validation keeps an error for each field that it does not know.

    Told by the method, which a caller cannot choose freely: what it says of its media type is its own.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, meters: Meters) -> None:
        self._app = app
        self._meters = meters
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in TENSORS:
            await self._app(scope, receive, send)
            return
        most, remedy = self._max_bytes, MAY_BE_RAISED
        if scope["path"] not in LONG and most > SHORT_BYTES:
            most, remedy = SHORT_BYTES, ""
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > most:
                error = MessageTooLarge(f"the body is longer than {most} bytes{remedy}")
                self._meters.refusals.labels(code=error.code).inc()
                await answer(error)(scope, receive, send)
                return
        await self._app(scope, _replay(bytes(body), receive), send)


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
