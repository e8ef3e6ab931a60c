# SPDX-License-Identifier: Apache-2.0
"""A small honest server for one worker, in the place of a network.

It keeps the contract of `docs/reference/http-api.md`: the same assignment until it is settled, one
receipt an assignment, the same receipt for the same digest; an access token for what the
worker's key has signed.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import httpx
import numpy as np

from protocol import assertions
from protocol.assertions import Purpose
from protocol.codec import Bundle, digest_of, encode_bundle
from protocol.errors import AssertionRefused, ClockSkewed
from protocol.join_token import JoinToken
from protocol.messages import Assignment, EvaluationAssignment, Receipt, RunStatus

PARAMS: Bundle = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}
WORKER = "w-1"
JOIN_TOKEN = JoinToken("j" * 43, "0123456789abcdef")
TOKEN_LIFE_S = 900
ANSWER_LOST = httpx.ReadError("the connection broke")


Hook = Callable[[], Awaitable[httpx.Response | None]]


def message_of(params: Bundle) -> bytes:
    return b"".join(encode_bundle("params", params))


@dataclass
class SmallServer(httpx.AsyncBaseTransport):
    """The server's side, in memory, in the place of a network.

    `before[route]` is awaited before a request is served, and may answer or raise instead; `after[route]`
    when it has been, and may raise instead of answering.
    """

    assignments: list[Assignment | EvaluationAssignment]
    tensors: dict[str, bytes]
    before: dict[str, Hook] = field(default_factory=dict)
    after: dict[str, Hook] = field(default_factory=dict)
    bodies: list[tuple[str, bytes]] = field(default_factory=list)
    declared: dict[str, str] = field(default_factory=dict)
    received: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    declined: dict[str, str] = field(default_factory=dict)
    metrics: list[dict[str, object]] = field(default_factory=list)
    enrolments: list[dict[str, object]] = field(default_factory=list)
    key: str | None = None
    """The worker's public key."""
    tokens: set[str] = field(default_factory=set)
    """Access tokens that are taken."""
    signed: list[str] = field(default_factory=list)
    """Assertions that were exchanged; each is good once."""
    clock_ms: Callable[[], int] = field(default=lambda: time.time_ns() // 1_000_000)
    runs: dict[str, RunStatus] = field(default_factory=dict)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        route, identifier = self._route(request)
        body = await request.aread()
        self.asked.append(route)
        self.bodies.append((route, body))
        answer = await self.before[route]() if route in self.before else None
        if answer is None and not self._knows(request, route):
            answer = problem("unauthenticated", 401)
        if answer is None:
            answer = await getattr(self, f"_{route}")(identifier, body)
            if route in self.after:
                await self.after[route]()
        return httpx.Response(
            answer.status_code, headers=answer.headers, stream=httpx.ByteStream(answer.content)
        )

    def _knows(self, request: httpx.Request, route: str) -> bool:
        shown = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if route == "token":
            return self.key is not None and not shown
        return shown.startswith(str(JOIN_TOKEN)) if route == "enrol" else shown in self.tokens

    def _route(self, request: httpx.Request) -> tuple[str, str]:
        match [request.method, *request.url.path.split("/")[2:]]:
            case ["POST", "workers"]:
                return "enrol", ""
            case ["POST", "workers", "w-1", "token"]:
                return "token", WORKER
            case ["POST", "workers", "w-1", "key"]:
                return "rotate", WORKER
            case ["POST", "workers", "w-1", "heartbeat"]:
                return "heartbeat", ""
            case ["GET", "workers", "w-1", "assignment"]:
                return "next", ""
            case ["GET", "runs", _, "tensors", digest]:
                return "tensors_of", digest
            case ["POST", "assignments", assignment_id, "update"]:
                return "declare", assignment_id
            case ["PATCH", "uploads", assignment_id]:
                return "upload", assignment_id
            case ["POST", "assignments", assignment_id, "decline"]:
                return "decline", assignment_id
            case ["GET", "runs", run_id]:
                return "show", run_id
            case ["POST", "runs", _, "metrics"]:
                return "report", ""
            case unknown:
                raise AssertionError(unknown)

    async def _enrol(self, _: str, body: bytes) -> httpx.Response:
        said = json.loads(body)
        self.enrolments.append(said)
        subject, use = assertions.thumbprint(said["public_key"]), assertions.use_of(JOIN_TOKEN.secret)
        refusal = self._refusal(said["proof"], said["public_key"], Purpose.ENROL, subject, use)
        if refusal is not None:
            return refusal
        self.key = said["public_key"]
        return httpx.Response(201, json={"worker_id": WORKER, "role": "trainer", "protocol_version": 1})

    async def _token(self, worker_id: str, body: bytes) -> httpx.Response:
        assertion = json.loads(body)["assertion"]
        assert self.key is not None
        refusal = self._refusal(assertion, self.key, Purpose.TOKEN, worker_id)
        if refusal is not None:
            return refusal
        if assertion in self.signed:
            return problem("assertion-refused", 401)
        self.signed.append(assertion)
        token = f"fsa_{len(self.signed):043d}"
        self.tokens.add(token)
        return httpx.Response(200, json={"access_token": token, "expires_s": TOKEN_LIFE_S})

    async def _rotate(self, worker_id: str, body: bytes) -> httpx.Response:
        said = json.loads(body)
        assert self.key is not None
        new_key = said["public_key"]
        refusal = self._refusal(said["proof"], new_key, Purpose.ROTATE, worker_id)
        use = assertions.thumbprint(new_key)
        refusal = refusal or self._refusal(said["consent"], self.key, Purpose.ROTATE, worker_id, use)
        if refusal is not None:
            return refusal
        self.key = said["public_key"]
        self.tokens.clear()
        return httpx.Response(204)

    def _refusal(
        self, assertion: str, key: str, purpose: Purpose, subject: str, use: str | None = None
    ) -> httpx.Response | None:
        now_ms = self.clock_ms()
        try:
            assertions.read(assertion, key, purpose, subject, JOIN_TOKEN.server_id, now_ms, use)
        except AssertionRefused:
            return problem("assertion-refused", 401)
        except ClockSkewed:
            return problem("clock-skewed", 401, server_ms=now_ms)
        return None

    def forget(self) -> None:
        """Be as if restored from a backup that is older than the worker."""
        self.key = None
        self.tokens.clear()

    async def _heartbeat(self, _: str, body: bytes) -> httpx.Response:
        return httpx.Response(204)

    async def _next(self, _: str, body: bytes) -> httpx.Response:
        if not self.assignments:
            await asyncio.Event().wait()
        return httpx.Response(200, content=self.assignments[0].model_dump_json())

    async def _tensors_of(self, digest: str, body: bytes) -> httpx.Response:
        return httpx.Response(200, content=self.tensors[digest])

    async def _declare(self, assignment_id: str, body: bytes) -> httpx.Response:
        digest = json.loads(body)["digest"]
        held = self.received.get(assignment_id)
        if held is not None:
            same = hashlib.sha256(held).hexdigest() == digest
            return self._receipt(assignment_id) if same else problem("update-conflict")
        if all(assignment_id != given.assignment_id for given in self._trainings()):
            return problem("round-closed")
        self.declared[assignment_id] = digest
        return httpx.Response(201, json={"upload_url": f"/v1/uploads/{assignment_id}", "offset": 0})

    async def _upload(self, assignment_id: str, body: bytes) -> httpx.Response:
        if hashlib.sha256(body).hexdigest() != self.declared[assignment_id]:
            return problem("digest-mismatch", 400)
        self.received[assignment_id] = body
        self.settle(assignment_id)
        return self._receipt(assignment_id)

    async def _decline(self, assignment_id: str, body: bytes) -> httpx.Response:
        self.declined[assignment_id] = json.loads(body)["reason"]
        self.settle(assignment_id)
        return httpx.Response(204)

    async def _show(self, run_id: str, body: bytes) -> httpx.Response:
        if run_id not in self.runs:
            return problem("not-found", 404)
        return httpx.Response(200, json={"run_id": run_id, "status": self.runs[run_id], "more": "besides"})

    async def _report(self, _: str, body: bytes) -> httpx.Response:
        self.metrics.append(json.loads(body))
        self.assignments.pop(0)
        return httpx.Response(204)

    def settle(self, assignment_id: str) -> None:
        self.assignments = [
            given
            for given in self.assignments
            if not isinstance(given, Assignment) or given.assignment_id != assignment_id
        ]

    def _trainings(self) -> list[Assignment]:
        return [given for given in self.assignments if isinstance(given, Assignment)]

    def _receipt(self, assignment_id: str) -> httpx.Response:
        digest = hashlib.sha256(self.received[assignment_id]).hexdigest()
        receipt = Receipt(assignment_id=assignment_id, digest=digest, received_ms=1, outcome="pending")
        return httpx.Response(200, content=receipt.model_dump_json())


def problem(
    code: str, status: int = 409, headers: dict[str, str] | None = None, **more: object
) -> httpx.Response:
    fields = {"type": "t", "title": "t", "status": status, "detail": "because", "code": code} | more
    return httpx.Response(
        status,
        content=json.dumps({**fields, "retryable": False}).encode(),
        headers={"Content-Type": "application/problem+json", **(headers or {})},
    )


def in_turn(*instead: httpx.Response | BaseException | None) -> Hook:
    """Answer or raise these, one a time, and nothing afterwards."""
    left = list(instead)

    async def hook() -> httpx.Response | None:
        answer = left.pop(0) if left else None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    return hook


def training(number: int = 1, task: str = "digits") -> Assignment:
    return Assignment(
        assignment_id=f"a-{number}",
        run_id="run-1",
        round=number,
        version=number - 1,
        slot=0,
        phase="train",
        task=task,
        tensors={"params": digest_of([message_of(PARAMS)])},
        bundles=("delta",),
        encodings={"delta": "f32"},
        optimizer="sgd",
        settings={},
        local_steps=3,
        batch_size=4,
        seed=0,
        deadline_ms=0,
    )


def evaluation(version: int) -> EvaluationAssignment:
    digests = {"params": digest_of([message_of(PARAMS)])}
    return EvaluationAssignment(run_id="run-1", version=version, task="digits", tensors=digests)


def a_server(*assignments: Assignment | EvaluationAssignment) -> SmallServer:
    message = message_of(PARAMS)
    return SmallServer(list(assignments), {digest_of([message]): message})
