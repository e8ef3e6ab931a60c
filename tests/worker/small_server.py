# SPDX-License-Identifier: Apache-2.0
"""A small honest server for one worker, in the place of a network.

It keeps the contract of `docs/reference/http-api.md`: the same assignment until it is settled, one
receipt an assignment, the same receipt for the same digest.
"""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import httpx
import numpy as np

from protocol.codec import Bundle, digest_of, encode_bundle
from protocol.messages import Assignment, EvaluationAssignment, Receipt, RunStatus

PARAMS: Bundle = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}
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
    secrets: set[str] = field(default_factory=set)
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
        return route == "enrol" or request.headers["Authorization"].removeprefix("Bearer ") in self.secrets

    def _route(self, request: httpx.Request) -> tuple[str, str]:
        match [request.method, *request.url.path.split("/")[2:]]:
            case ["POST", "workers"]:
                return "enrol", ""
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
        self.enrolments.append(json.loads(body))
        self.secrets.add(str(self.enrolments[-1]["secret"]))
        return httpx.Response(201, json={"worker_id": "w-1", "role": "trainer", "protocol_version": 1})

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


def problem(code: str, status: int = 409, headers: dict[str, str] | None = None) -> httpx.Response:
    fields = {"type": "t", "title": "t", "status": status, "detail": "because", "code": code}
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
