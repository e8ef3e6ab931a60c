# SPDX-License-Identifier: Apache-2.0
"""The audit log: who did what, one JSON object a line, appended to a file that is never rewritten.

A line is written before its answer goes out: what an operator was told is done is in the log. It holds what
was done, by whom, to what, from where, and with which result; of requests, the path and nothing else: no
header, no query, no body. Reading, heartbeats and updates leave no line; every refusal for want of a
credential or of a right does, and every enrolment and change of a key that comes to nothing, but for a
flood's, of which the next line says how many were left out.
"""

import json
import logging
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ps_service.auth import Operator
from ps_service.clock import Clock
from ps_service.rates import TokenBuckets
from ps_service.storage.credential_records import StoredWorker

log = logging.getLogger("fed_sophia.http")

_REFUSED = (401, 403)
_NOTHING_CAME_OF_IT = 400
_REFUSALS_PER_S, _REFUSALS_BURST_S = 10.0, 60.0
_LONGEST = 200
"""Characters of anything that a caller has chosen."""


class Audit:
    """Appends lines. Without a path it takes them and keeps nothing."""

    def __init__(self, path: Path | None, clock: Clock) -> None:
        self._clock = clock
        self._path = path
        self._refusals = TokenBuckets(_REFUSALS_PER_S, _REFUSALS_BURST_S)
        self._left_out = 0

    def note(self, who: str, did: str, about: Mapping[str, object]) -> None:
        """Append a line.

        Args:
            who: `operator KEY (LABEL)`, `worker ID`, `nobody` or `server`.
            did: what, as method and path, or as a word of the server's.
        """
        at = datetime.fromtimestamp(self._clock.now_ms() / 1000, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {"at": at, "who": who, "did": did[:_LONGEST]}
        if self._left_out:
            line["refusals_left_out"], self._left_out = self._left_out, 0
        self._append(json.dumps(line | {name: _short(value) for name, value in about.items()}))

    def note_refusal(self, who: str, did: str, about: Mapping[str, object]) -> None:
        """Append a line on a refusal, unless it is one of a flood."""
        if self._refusals.take("", self._clock.now_ms() / 1000):
            self._left_out += 1
        else:
            self.note(who, did, about)

    def _append(self, line: str) -> None:
        if self._path is None:
            return
        try:
            # opened for each: a log that was rotated away is begun anew, and nothing need be closed
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(line.encode() + b"\n")
        except OSError:
            log.exception("the audit log lacks a line: %s", line)


def _short(value: object) -> object:
    return value[:_LONGEST] if isinstance(value, str) else value


class Audited:
    """ASGI middleware: a line for each request that changes something, and for each that may not.

    The request's state says who is asking (`caller`, by `auth`), and, where a route has more to tell, what
    the line is about (`about`: {name: value}).
    """

    def __init__(self, app: ASGIApp, audit: Audit) -> None:
        self._app = app
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._note(scope, state, message["status"])
            await send(message)

        await self._app(scope, receive, noting)

    def _note(self, scope: Scope, state: Mapping[str, object], status: int) -> None:
        caller = state.get("caller")
        did = f"{scope['method']} {scope['path']}"
        client = scope.get("client")
        given = state.get("about")
        about = {"status": status, "address": client[0] if client else None}
        about |= given if isinstance(given, dict) else {}
        of_operator = isinstance(caller, Operator)
        changes = scope["method"] not in ("GET", "HEAD") and (of_operator or _is_of_identity(scope["path"]))
        if status in _REFUSED or (changes and not of_operator and status >= _NOTHING_CAME_OF_IT):
            self._audit.note_refusal(_who(caller), did, about)  # anybody can ask for these
        elif changes:
            self._audit.note(_who(caller), did, about)


def _is_of_identity(path: str) -> bool:
    """Whether a request to this path makes a worker, or changes its key."""
    return path == "/v1/workers" or path.endswith("/key")


def _who(caller: object) -> str:
    if isinstance(caller, Operator):
        return f"operator {caller.key_id} ({caller.label})"
    return f"worker {caller.worker_id}" if isinstance(caller, StoredWorker) else "nobody"
