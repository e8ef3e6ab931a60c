# SPDX-License-Identifier: Apache-2.0
"""A worker of a crowd: one connection, HTTP/1.1 by hand, and a trivial update when it is invited."""

import asyncio
import json
import random
import secrets
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np

from protocol.assertions import Purpose, public_key_of, thumbprint, use_of
from protocol.codec import MEDIA_TYPE, NamedTensor, digest_of, encode_message
from protocol.join_token import JoinToken
from protocol.messages import Enrolment, UpdateHeader
from worker.credentials import RENEW_AT, Signer

TASK = "crowd"
NUMBERS = 16
"""Parameters of the model: what travels is not what is measured here."""
SHORT_S = 30.0
MARGIN_S = 30.0
PAUSE_S = 1.0

_UPDATE = encode_message("update", [NamedTensor("delta", "w", np.zeros(NUMBERS, np.float32), "f32")])
_BODY = b"".join(_UPDATE)
_HEADER = UpdateHeader(
    digest=digest_of(_UPDATE),
    size_bytes=len(_BODY),
    bundles=("delta",),
    encodings={"delta": "f32"},
    num_examples=10,
    local_steps=1,
)


class Refused(Exception):
    """The server has answered something else than was expected."""


@dataclass
class Crowd:
    """What the workers of one process share."""

    url: str
    join_token: str
    training_s: float
    """Between an assignment and its update."""
    assigned: list[tuple[str, int, float]] = field(default_factory=list)
    """(run, round, UTC in ms) of every assignment that came."""
    polls: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """{what went wrong: how often}."""
    advised: set[str] = field(default_factory=set)
    """Who was told how long to wait."""
    may_train: asyncio.Event = field(default_factory=asyncio.Event)
    """Not set: who is invited notes when, and does nothing."""


class Device:
    """One worker."""

    def __init__(self, name: str, crowd: Crowd) -> None:
        self.name = name
        self._crowd = crowd
        self._signer = Signer(secrets.token_urlsafe(32), JoinToken.parse(crowd.join_token).server_id)
        self._worker_id = ""
        self._token = ""
        self._renew_at_s = 0.0
        self._path = ""
        self._wait_s = SHORT_S
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def enrol(self) -> None:
        """Raises: Refused, OSError."""
        public_key = public_key_of(self._signer.private_key)
        use = use_of(JoinToken.parse(self._crowd.join_token).secret)
        proof = self._signer.sign(Purpose.ENROL, thumbprint(public_key), use)
        message = Enrolment(name=self.name, public_key=public_key, proof=proof, tasks=(TASK,))
        body = message.model_dump_json().encode()
        status, _, answer = await self._ask("POST", "/v1/workers", body, token=self._crowd.join_token)
        _expect(status, answer, 201)
        self._worker_id = json.loads(answer)["worker_id"]
        self._path = f"/v1/workers/{self._worker_id}/assignment"
        self._hang_up()  # until all have enrolled, the server may well close it

    async def work(self) -> None:
        """Wait for assignments and answer them, until cancelled."""
        while True:
            try:
                await self._turn()
            except (OSError, asyncio.IncompleteReadError, Refused) as error:
                self._crowd.failures[f"{type(error).__name__}: {error}"[:200]] += 1
                self._hang_up()
                if isinstance(error, Refused):
                    self._renew_at_s = 0.0  # it may be the token that has ended early
                await asyncio.sleep(PAUSE_S * (0.5 + random.random()))

    async def _renew(self) -> None:
        """Have another access token once four fifths of this one's time have passed."""
        if time.monotonic() < self._renew_at_s:
            return
        asked_s = time.monotonic()
        body = json.dumps({"assertion": self._signer.sign(Purpose.TOKEN, self._worker_id)}).encode()
        path = f"/v1/workers/{self._worker_id}/token"
        status, _, answer = await self._ask("POST", path, body, token="")
        _expect(status, answer, 200)
        issued = json.loads(answer)
        self._token, self._renew_at_s = issued["access_token"], asked_s + RENEW_AT * issued["expires_s"]

    async def _turn(self) -> None:
        await self._renew()
        self._crowd.polls += 1
        prefer = {"Prefer": f"wait={self._wait_s:g}"}
        status, headers, body = await self._ask("GET", self._path, headers=prefer, silence_s=self._wait_s)
        came_ms = time.time() * 1000
        if status == 204:
            self._wait_s = float(headers.get("next-wait", SHORT_S))
            self._crowd.advised.add(self.name)
            return
        _expect(status, body, 200)
        assignment = json.loads(body)
        self._crowd.assigned.append((assignment["run_id"], assignment["round"], came_ms))
        if not self._crowd.may_train.is_set():
            await self._crowd.may_train.wait()
            return
        await asyncio.sleep(self._crowd.training_s)
        await self._send(assignment["assignment_id"])

    async def _send(self, assignment_id: str) -> None:
        path = f"/v1/assignments/{assignment_id}/update"
        status, _, offer = await self._ask("POST", path, _HEADER.model_dump_json().encode())
        _expect(status, offer, 201)
        media_type = {"Content-Type": MEDIA_TYPE}
        status, _, receipt = await self._ask("PUT", json.loads(offer)["upload_url"], _BODY, media_type)
        _expect(status, receipt, 200)

    async def _ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        token: str | None = None,
        silence_s: float = 0.0,
    ) -> tuple[int, dict[str, str], bytes]:
        """Raises: OSError, IncompleteReadError: no answer came."""
        async with asyncio.timeout(silence_s + MARGIN_S):
            reader, writer = await self._connection()
            said = {
                "Host": urlsplit(self._crowd.url).netloc,
                "Authorization": f"Bearer {self._token if token is None else token}",
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
            } | dict(headers or {})
            lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in said.items())]
            writer.write("\r\n".join([*lines, "", ""]).encode() + body)
            await writer.drain()
            first, *rest = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
            answered = {
                name.lower(): value.strip()
                for name, _, value in (line.partition(":") for line in rest if line)
            }
            content = await reader.readexactly(int(answered.get("content-length", "0")))
        return int(first.split()[1]), answered, content

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._reader is None or self._writer is None or self._reader.at_eof():
            address = urlsplit(self._crowd.url)
            self._reader, self._writer = await asyncio.open_connection(address.hostname, address.port)
        return self._reader, self._writer

    def _hang_up(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


def _expect(status: int, body: bytes, expected: int) -> None:
    if status != expected:
        raise Refused(f"{status}: {body[:200]!r}")
