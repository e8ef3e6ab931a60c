# SPDX-License-Identifier: Apache-2.0
"""Bounds a JSON body before anything reads it. Tensor messages have limits of their own."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protocol.errors import MessageTooLarge
from ps_service.metrics import Meters
from ps_service.routes.problems import answer


class JsonBodyLimit:
    """ASGI middleware: a JSON body longer than the limit is answered 413.

    Told by the method, which a caller cannot choose freely: what it says of its media type is its own.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, meters: Meters) -> None:
        self._app = app
        self._meters = meters
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] == "PUT":  # PUT carries tensor messages alone
            await self._app(scope, receive, send)
            return
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._max_bytes:
                error = MessageTooLarge(
                    f"the body is longer than {self._max_bytes} bytes; "
                    "the server's FED_SOPHIA_MAX_JSON_BYTES says how long it may be"
                )
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
