# SPDX-License-Identifier: Apache-2.0
"""A parameter server and a few workers in one process, with verbs that wait until they are done.

For tests that are no coroutines themselves. Rows are in a SQLite in memory, tensors in real files, time
passes when told to; a restart takes everything but the stores away.
"""

import asyncio
import hashlib
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import httpx

from protocol.messages import Receipt
from ps_service.deadlines import tick
from ps_service.effects import perform_effects
from ps_service.settings import Settings
from ps_service.storage import Stores
from ps_service.storage.files import FileBlobs
from ps_service.storage.records import open_records
from tests.ps_service.conftest import ManualClock, ParameterServer, Update, Worker, add_operator
from tests.ps_service.ledger import Ledger, read_ledger

START_MS = 10**12
LOST_AFTER_MS = 9_000
MODEL = {"weight": (2, 3)}


class SmallFederation:
    """What workers and an operator say to a server, what it answers, and all that it keeps."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = ManualClock(START_MS)
        self.workers: list[Worker] = []
        """Those that train."""
        self._enrolled: list[Worker] = []
        self.heard_ms: dict[str, int] = {}
        """{worker_id: when it last said anything}, as the clock shows it now."""
        self._runner = asyncio.Runner()
        self._assignments: dict[str, dict] = {}
        try:
            self._do(self._open())
        except BaseException:
            self._runner.close()
            raise

    def close(self) -> None:
        try:
            self._do(self.records.close())
        finally:
            self._runner.close()

    def restart(self) -> None:
        """Nothing is left of the server but its stores; another one goes on with them."""
        stores = Stores(self.records, FileBlobs(self.directory, fsync=lambda _descriptor: None))
        # time stands still here, and what is refused is what is tested
        settings = Settings(
            lost_after_s=LOST_AFTER_MS / 1000, quarantine_after=0, requests_per_s_per_worker=10_000
        )
        self.server = ParameterServer(self.directory, stores, self.clock, settings)
        for worker in self._enrolled:
            worker.move_to(self.server)

    def ledger(self) -> Ledger:
        files = [
            f"{folder}/{name}"
            for folder, _, names in os.walk(self.directory)
            for name in names
            if name != "audit.jsonl"  # which is only added to, whatever happens
        ]
        return self._do(read_ledger(self.records, tuple(sorted(files))))

    # --- the operator, and time ------------------------------------------------------------------

    def enrol(self, name: str, role: str = "trainer") -> Worker:
        worker = self._do(self.server.enrol(name, role=role))
        self.heard_ms[worker.worker_id] = self.clock.now_ms()
        self._enrolled.append(worker)
        if role == "trainer":
            self.workers.append(worker)
        return worker

    def create_run(self, **policies: object) -> str:
        return self._do(self.server.a_run(model=MODEL, **policies)).run_id

    def operate(self, path: str) -> httpx.Response:
        """POST as the operator."""
        return self._do(self.server.operator.post(path))

    def look_up(self, path: str) -> dict:
        """GET as the operator."""
        answer = self._do(self.server.operator.get(path))
        assert answer.status_code == 200, answer.text
        return answer.json()

    def revoke(self, worker: Worker) -> None:
        assert self._do(self.server.operator.delete(f"/v1/workers/{worker.worker_id}")).status_code == 204

    def jump(self, milliseconds: int) -> None:
        """Set the clock forwards or backwards."""
        self.clock.advance(milliseconds)
        now_ms = self.clock.now_ms()
        self.heard_ms = {worker_id: min(at_ms, now_ms) for worker_id, at_ms in self.heard_ms.items()}

    def tick(self) -> float:
        return self._do(tick(self.server.runner))

    def look(self) -> None:
        """Find who is lost."""
        self._do(self.server.service.presence.look())

    def perform(self) -> None:
        assert self._do(perform_effects(self.server.runner))

    def tidy(self) -> None:
        self._do(self.server.service.housekeeping.look())

    def sweep(self) -> None:
        self._do(self.server.service.housekeeping.sweep())

    def read_tensors(self, digest: str) -> None:
        """Read these bytes, and find that they are the ones of that name."""
        blobs = self.server.stores.blobs
        held = bytearray(blobs.size(digest) or 0)
        blobs.read_into(digest, 0, held)
        assert hashlib.sha256(held).hexdigest() == digest

    # --- workers ---------------------------------------------------------------------------------

    def ask(self, worker: Worker) -> httpx.Response:
        return self._said(worker, worker.ask())

    def heartbeat(self, worker: Worker) -> httpx.Response:
        return self._said(worker, worker.http.post(f"/v1/workers/{worker.worker_id}/heartbeat", json={}))

    def receipt(self, assignment: dict) -> Receipt:
        path = f"/v1/assignments/{assignment['assignment_id']}/update"
        return Receipt.model_validate(self.look_up(path))

    def an_update(self, assignment: dict, seed: int, **changes: object) -> Update:
        """The update of this seed; the same for all workers of a round who choose it."""
        assignment_id = assignment["assignment_id"]
        if assignment_id not in self._assignments:
            self._assignments[assignment_id] = self.look_up(f"/v1/assignments/{assignment_id}")
        return self.server.an_update(self._assignments[assignment_id], model=MODEL, seed=seed, **changes)

    def declare(self, assignment: dict, update: Update) -> httpx.Response:
        worker = self.worker_of(assignment)
        return self._said(worker, worker.declare(assignment, update.header))

    def put(self, assignment: dict, upload_url: str, body: bytes) -> httpx.Response:
        worker = self.worker_of(assignment)
        return self._said(worker, worker.put(upload_url, body))

    def send(self, assignment: dict, update: Update) -> httpx.Response:
        """Declare and, if it is asked for, send the body: the last answer."""
        answer = self.declare(assignment, update)
        if answer.status_code != 201:
            return answer
        return self.put(assignment, answer.json()["upload_url"], update.body)

    def decline(self, assignment: dict) -> httpx.Response:
        worker = self.worker_of(assignment)
        path = f"/v1/assignments/{assignment['assignment_id']}/decline"
        return self._said(worker, worker.http.post(path, json={"reason": "busy"}))

    def measure(self, worker: Worker, run_id: str, version: int, loss: float) -> httpx.Response:
        report = {"version": version, "num_examples": 10, "metrics": {"loss": loss}}
        return self._said(worker, worker.http.post(f"/v1/runs/{run_id}/metrics", json=report))

    def worker_of(self, assignment: dict) -> Worker:
        return next(worker for worker in self.workers if worker.worker_id == assignment["worker_id"])

    def _said(self, worker: Worker, request: Coroutine[Any, Any, httpx.Response]) -> httpx.Response:
        self.heard_ms[worker.worker_id] = self.clock.now_ms()
        answer = self._do(request)
        assert answer.status_code < 500, answer.text
        return answer

    def _do(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(coroutine)

    async def _open(self) -> None:
        self.records = await open_records(None)
        async with self.records.write() as connection:
            await add_operator(connection)
        self.restart()


def code_of(answer: httpx.Response) -> str | None:
    """The code of the problem that was answered; None if it is none."""
    return None if answer.is_success else answer.json()["code"]
