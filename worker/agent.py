# SPDX-License-Identifier: Apache-2.0
"""The loop of a worker, to be read aloud.

    await assignment → pull → train → keep → push → receipt → local state installed

An assignment is asked for only while the outbox is empty, so nothing is trained twice. A turn may be
cut off anywhere and begun again: the server answers the same assignment until it is settled, and a kept
update is pushed again with the same bytes. What an error means for a turn is in `retry` and `refusals`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from protocol.codec import decode_message
from protocol.errors import BundleMismatch, FedSophiaError, InvalidTask, NotFinite
from protocol.messages import (
    Assignment,
    Decline,
    EvaluationAssignment,
    Heartbeat,
    MetricsReport,
    Receipt,
    parse,
)
from worker.client import ServerClient, Transport
from worker.enrolment import enrol_once
from worker.events import Evaluated, Refused, Report, Sent, Training, Waiting
from worker.identity import identity_in
from worker.local_state import Kept, LocalState
from worker.options import WorkerOptions
from worker.outbox import Entry, Outbox, Pending
from worker.patience import REAL_PAUSES, Pauses, persistently
from worker.refusals import CANNOT_BE_DONE, OVERTAKEN
from worker.retry import backoff
from worker.trainers import build_trainers
from worker.update import Tensors, Trained, pack

LONG_POLL_S = 30.0
CHUNK_BYTES = 1024 * 1024
MAX_REASON = 500

__all__ = ["Agent", "Trains", "WorkerOptions", "run_worker", "serve"]

T = TypeVar("T")


class Trains(Protocol):
    """The numerical half of a worker; synchronous, called in a thread, one call at a time."""

    def train(self, assignment: Assignment, state: dict[str, Tensors], kept: Kept | None) -> Trained: ...

    def evaluate(self, state: dict[str, Tensors]) -> tuple[int, dict[str, float]]: ...


class Agent:
    """One enrolled worker that serves one task."""

    def __init__(
        self,
        name: str,
        worker_id: str,
        task: str,
        client: ServerClient,
        trainer: Trains,
        state_dir: Path,
        report: Report,
        pauses: Pauses,
        executor: Executor | None = None,
    ) -> None:
        """Args: executor: where training runs; None means the loop's own threads."""
        self._name = name
        self._worker_id = worker_id
        self._task = task
        self._client = client
        self._trainer = trainer
        self._local_state = LocalState(state_dir / "local_state")
        self._outbox = Outbox(state_dir / "outbox", self._local_state)
        self._report = report
        self._pauses = pauses
        self._executor = executor
        self._pulled: dict[str, dict[str, Tensors]] = {}

    async def run(self, max_assignments: int | None = None) -> None:
        """Take turns until cancelled, or until so many assignments have come to an end.

        Raises:
            FedSophiaError: one that neither a pause nor the next assignment can mend.
        """
        ended = refused_in_a_row = 0
        while max_assignments is None or ended < max_assignments:
            refused = await self._persistently(self._turn)
            ended += 1
            refused_in_a_row = refused_in_a_row + 1 if refused else 0
            if refused:  # the same assignment may come again at once: never ask in a tight circle
                await self._pauses.sleep(backoff(refused_in_a_row, self._pauses.jitter()))

    async def _turn(self) -> bool:
        """Bring one assignment to its end; True if that end was a refusal."""
        if not self._outbox.pending():
            assignment = await self._await_assignment()
            try:
                if assignment.task != self._task:
                    raise InvalidTask(f"this worker serves {self._task}, not {assignment.task}")
                if isinstance(assignment, EvaluationAssignment):
                    await self._evaluate(assignment)
                    return False
                await self._train_and_keep(assignment)
            except OVERTAKEN + CANNOT_BE_DONE as error:
                if isinstance(assignment, Assignment):
                    await self._decline(assignment.assignment_id, error)
                self._report(Refused(error.code, error.detail, worker=self._name))
                return True
        return await self._deliver(self._outbox.pending()[0])

    async def _await_assignment(self) -> Assignment | EvaluationAssignment:
        self._report(Waiting(worker=self._name))
        while True:
            assignment = await self._client.next_assignment(self._worker_id, LONG_POLL_S)
            if assignment is not None:
                return assignment

    async def _pull(self, run_id: str, digests: dict[str, str]) -> dict[str, Tensors]:
        """Give the bundles with these digests, fetching those this worker lacks; others are forgotten."""
        if "params" not in digests:
            raise BundleMismatch("the assignment names no params to start from")
        held = self._pulled
        self._pulled = {digest: held[digest] for digest in digests.values() if digest in held}
        state = {}
        for bundle, digest in digests.items():
            if digest not in self._pulled:
                message = await self._client.fetch_tensors(run_id, digest)
                self._pulled[digest] = await asyncio.to_thread(decode_message, message)
            if bundle not in self._pulled[digest]:
                raise BundleMismatch(f"tensors {digest}: expected bundle {bundle} in them")
            state[bundle] = self._pulled[digest][bundle]
        return state

    async def _train_and_keep(self, assignment: Assignment) -> None:
        state = await self._pull(assignment.run_id, assignment.tensors)
        kept = await asyncio.to_thread(self._local_state.load, assignment.run_id)
        self._report(Training(assignment.run_id, assignment.round, worker=self._name))
        trained = await self._beside_heartbeats(partial(self._trainer.train, assignment, state, kept))
        await _to_its_end(partial(self._keep, assignment, state["params"], trained))

    def _keep(self, assignment: Assignment, params: Tensors, trained: Trained) -> None:
        header, message = pack(assignment, params, trained)
        entry = Entry(
            assignment_id=assignment.assignment_id,
            run_id=assignment.run_id,
            round=assignment.round,
            header=header,
        )
        self._outbox.put(entry, message, trained.kept)

    async def _deliver(self, pending: Pending) -> bool:
        """Push a kept update and settle it; True if the server would not have it."""
        assignment_id = pending.entry.assignment_id
        try:
            receipt = await self._push(pending)
        except OVERTAKEN + CANNOT_BE_DONE as error:
            await self._decline(assignment_id, error)
            await _to_its_end(partial(self._outbox.drop, assignment_id))
            self._report(Refused(error.code, error.detail, worker=self._name))
            return True
        await _to_its_end(partial(self._outbox.settle, assignment_id))
        self._report(Sent(receipt, pending.entry.header.size_bytes, worker=self._name))
        return False

    async def _push(self, pending: Pending) -> Receipt:
        answer = await self._client.declare(pending.entry.assignment_id, pending.entry.header)
        if isinstance(answer, Receipt):
            return answer
        size_bytes = pending.entry.header.size_bytes
        return await self._client.upload(answer.upload_url, size_bytes, _chunks(pending.message_path))

    async def _decline(self, assignment_id: str, error: FedSophiaError) -> None:
        """Tell the server that no update will come, unless it has settled the assignment itself."""
        if isinstance(error, OVERTAKEN):
            return
        decline = Decline(reason=f"{error.code}: {error.detail}"[:MAX_REASON])
        with contextlib.suppress(*OVERTAKEN):
            await self._persistently(partial(self._client.decline, assignment_id, decline))

    async def _evaluate(self, assignment: EvaluationAssignment) -> None:
        state = await self._pull(assignment.run_id, assignment.tensors)
        try:
            num_examples, metrics = await self._beside_heartbeats(partial(self._trainer.evaluate, state))
        except (
            NotFinite
        ) as error:  # said to the server as an empty report, so that it offers the next version
            self._report(Refused(error.code, error.detail, worker=self._name))
            num_examples, metrics = 1, {}
        report = parse(
            MetricsReport,
            {"version": assignment.version, "num_examples": num_examples, "metrics": metrics},
        )
        await self._persistently(partial(self._client.report_metrics, assignment.run_id, report))
        if metrics:
            self._report(Evaluated(assignment.version, metrics, worker=self._name))

    async def _beside_heartbeats(self, work: Callable[[], T]) -> T:
        """Do long work in a thread; tell the server now and then that it goes on."""
        working = asyncio.get_running_loop().run_in_executor(self._executor, work)
        try:
            while not (await asyncio.wait([working], timeout=self._pauses.heartbeat_s))[0]:
                try:
                    await self._client.heartbeat(self._worker_id, Heartbeat())
                except FedSophiaError as error:
                    if not error.retryable:
                        raise
            return working.result()
        finally:
            working.cancel()  # work that waits for its thread never begins; begun work ends unheard

    async def _persistently(self, action: Callable[[], Awaitable[T]]) -> T:
        return await persistently(action, self._name, self._report, self._pauses)


async def run_worker(options: WorkerOptions, report: Report) -> None:
    """Be one worker until cancelled, or until `max_assignments` have come to an end.

    Raises:
        FedSophiaError: one that neither a pause nor the next assignment can mend.
    """
    task_name, trainers = await asyncio.to_thread(build_trainers, options, [options.partition_index])
    await serve(options, task_name, trainers[0], report)


async def serve(
    options: WorkerOptions,
    task_name: str,
    trainer: Trains,
    report: Report,
    pauses: Pauses = REAL_PAUSES,
    executor: Executor | None = None,
    transport: Transport | None = None,
) -> None:
    """Be one worker with this trainer; `transport` stands in for the network in a test."""
    identity = identity_in(options.state_dir, options.server_url)
    async with ServerClient(options.server_url, identity.secret, transport) as client:
        worker_id = await enrol_once(client, identity, options, task_name, report, pauses)
        agent = Agent(
            options.name,
            worker_id,
            task_name,
            client,
            trainer,
            options.state_dir,
            report,
            pauses,
            executor,
        )
        await agent.run(options.max_assignments)


async def _to_its_end(action: Callable[[], None]) -> None:
    """Do a short action on files in a thread; a cancellation waits until it is done."""
    acting = asyncio.get_running_loop().run_in_executor(None, action)
    try:
        await asyncio.shield(acting)
    except asyncio.CancelledError:
        await asyncio.wait([acting])
        raise


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(path.open, "rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk
