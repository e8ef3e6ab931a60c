# SPDX-License-Identifier: Apache-2.0
"""The loop of a worker, to be read aloud.

    await assignment → pull → train → keep → push → receipt → local state installed

An assignment is asked for only while the outbox is empty, so nothing is trained twice. A turn may be
cut off anywhere and begun again: the server answers the same assignment until it is settled, and a kept
update is pushed again with the same bytes. What an error means for a turn is in `retry` and `refusals`.
"""

import asyncio
import contextlib
import math
import os
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar

from protocol.addresses import refuse_plain_http
from protocol.codec import Bundle
from protocol.errors import (
    AssertionRefused,
    DigestMismatch,
    FedSophiaError,
    InvalidTask,
    NotFinite,
    RunEnded,
    Unauthenticated,
    WorkerExpired,
    WorkerRevoked,
)
from protocol.messages import (
    Assignment,
    Decline,
    EvaluationAssignment,
    Heartbeat,
    MetricsReport,
    parse,
)
from worker.aside import InThread, TrainsAside
from worker.client import ServerClient
from worker.downloader import Downloader
from worker.durable import Fsync, prove_writable, sole_user
from worker.enrolment import Enrolling
from worker.events import Evaluated, Refused, Report, Sent, Training, Waiting
from worker.global_state import GlobalState
from worker.identity import identity_in
from worker.introducing import DeviceName, tell_device
from worker.leftovers import forget_ended
from worker.loading import NotLoaded, loading
from worker.local_state import LocalState
from worker.options import WorkerOptions
from worker.outbox import Entry, Outbox, Pending
from worker.patience import HEARTBEAT_S, REAL_PAUSES, Pauses, despite_damage, persistently
from worker.poller import Poller
from worker.refusals import CANNOT_BE_DONE, DAMAGED_ON_THE_WAY, OVERTAKEN
from worker.retry import backoff
from worker.sending import Transport
from worker.shared import Shared
from worker.store_client import StoreClient
from worker.threads import Companion, accompanied, for_ever, to_its_end
from worker.trainers import Trains, build_trainers, chosen_device, name_before_loading
from worker.trust import store_tls_for, tls_for
from worker.update import Trained, pack
from worker.uploader import Uploader

SHORT_POLL_S = 1.0
"""Nothing to do, said sooner than this: by someone who does not know how to wait."""
LOOK_EVERY_S = 3600.0
"""From one look for what ended runs left behind to the next, while there is nothing to do."""
LAST_WORD_S = 5.0
"""How long a worker that has to end tries to say that it has nothing to give."""
MAX_REASON = 500

__all__ = ["Agent", "Trains", "WorkerOptions", "run_worker", "serve", "serve_aside"]

NO_WORKER_ANY_MORE = (Unauthenticated, AssertionRefused, WorkerRevoked, WorkerExpired)
"""The server has this worker no more."""

T = TypeVar("T")


class Agent:
    """One enrolled worker that serves one task."""

    def __init__(
        self,
        name: str,
        worker_id: str,
        task: str,
        client: ServerClient,
        store: StoreClient,
        trainer: TrainsAside,
        state_dir: Path,
        report: Report,
        pauses: Pauses,
        fsync: Fsync = os.fsync,
        failure: Companion = for_ever,
        shared: Shared | None = None,
    ) -> None:
        """Args:
        failure: raises what ends this worker, whatever it is about.
        shared: with other workers of this process.
        """
        shared = shared or Shared()
        self._name = name
        self._worker_id = worker_id
        self._task = task
        self._client = client
        self._uploader = Uploader(client, store)
        self._downloader = Downloader(client, store)
        self._poller = Poller(client, worker_id, pauses.clock_s)
        self._trainer = trainer
        self._state_dir = state_dir
        self._local_state = LocalState(state_dir / "local_state", fsync)
        self._outbox = Outbox(state_dir / "outbox", self._local_state, fsync)
        self._report = report
        self._pauses = pauses
        self._failure = failure
        self._global_state = GlobalState(self._fetch, shared.held)
        self._moving = shared.moving
        self._measured: dict[str, int] = {}  # {run: version measured last}
        self._heartbeat_s = min(HEARTBEAT_S, pauses.heartbeat_s)  # until an assignment says how often
        self._looked_s = -math.inf  # when it was looked for what ended runs left behind

    async def run(self, max_assignments: int | None = None) -> None:
        """Take turns until cancelled, or until so many assignments have come to an end.

        Raises:
            FedSophiaError: one that neither a pause nor the next assignment can mend.
        """
        ended = in_vain = 0
        while max_assignments is None or ended < max_assignments:
            in_vain = 0 if await self._persistently(self._turn) else in_vain + 1
            ended += 1
            if in_vain:  # the same assignment may come again at once: never ask in a tight circle
                await self._pause(in_vain)

    async def _turn(self) -> bool:
        """Bring one assignment to its end; True if something came of it."""
        if not self._outbox.pending():
            await to_its_end(partial(prove_writable, self._state_dir))
            assignment = await self._await_assignment()
            try:
                if assignment.task != self._task:
                    raise InvalidTask(f"this worker serves {self._task}, not {assignment.task}")
                self._heartbeat_s = min(assignment.heartbeat_s, self._pauses.heartbeat_s)
                if isinstance(assignment, EvaluationAssignment):
                    return await self._heard_of(self._evaluate(assignment))
                await self._heard_of(self._train_and_keep(assignment))
            except OVERTAKEN + CANNOT_BE_DONE as error:
                if isinstance(assignment, Assignment):
                    await self._give_up(assignment.assignment_id, assignment.run_id, error)
                else:
                    self._report(Refused(error.code, error.detail, worker=self._name))
                return False
            except NotLoaded as failed:
                if isinstance(assignment, Assignment):
                    await self._decline_in_passing(assignment.assignment_id, failed.error)
                raise
            finally:
                self._global_state.let_go()
        return await self._heard_of(self._deliver(self._outbox.pending()[0]))

    async def _await_assignment(self) -> Assignment | EvaluationAssignment:
        self._report(Waiting(worker=self._name))
        short_polls = 0
        while True:
            asked_s = self._pauses.clock_s()
            # its pauses grow apart from those of the turn
            assignment = await accompanied(self._persistently(self._poller.ask), self._failure())
            if assignment is not None:
                return assignment
            if asked_s - self._looked_s >= LOOK_EVERY_S:
                self._looked_s = asked_s
                await forget_ended(self._client, self._local_state)
            if self._pauses.clock_s() - asked_s >= SHORT_POLL_S:
                short_polls = 0
                continue
            await self._pause(short_polls)
            short_polls += 1

    async def _fetch(self, run_id: str, digest: str, at_most_bytes: int | None) -> memoryview:
        fetch = partial(self._downloader.fetch, run_id, digest, at_most_bytes)
        async with self._moving:
            return await self._despite_damage(fetch, (DigestMismatch,))

    async def _train_and_keep(self, assignment: Assignment) -> None:
        state = await self._global_state.pull(assignment.run_id, assignment.tensors)
        kept = await asyncio.to_thread(self._local_state.load, assignment.run_id)
        self._report(Training(assignment.run_id, assignment.round, worker=self._name))
        trained = await self._trainer.train(assignment, state, kept)
        await to_its_end(partial(self._keep, assignment, state["params"], trained))

    def _keep(self, assignment: Assignment, params: Bundle, trained: Trained) -> None:
        header, message = pack(assignment, params, trained)
        entry = Entry(
            assignment_id=assignment.assignment_id,
            run_id=assignment.run_id,
            round=assignment.round,
            header=header,
        )
        self._outbox.put(entry, message, trained.kept)

    async def _deliver(self, pending: Pending) -> bool:
        """Push a kept update and settle it; False if the server would not have it."""
        assignment_id = pending.entry.assignment_id
        try:
            push = partial(self._uploader.push, assignment_id, pending.entry.header, pending.message_path)
            async with self._moving:
                receipt = await self._despite_damage(push, DAMAGED_ON_THE_WAY)
        except OVERTAKEN + CANNOT_BE_DONE as error:
            await self._give_up(assignment_id, pending.entry.run_id, error)
            await to_its_end(partial(self._outbox.drop, assignment_id))
            return False
        await to_its_end(partial(self._outbox.settle, assignment_id))
        self._report(Sent(receipt, pending.entry.header.size_bytes, worker=self._name))
        return True

    async def _give_up(self, assignment_id: str, run_id: str, error: FedSophiaError) -> None:
        """Tell the server that no update will come, unless it has settled the assignment itself."""
        if not isinstance(error, OVERTAKEN):
            with contextlib.suppress(*OVERTAKEN):
                await self._persistently(partial(self._client.decline, assignment_id, _declining(error)))
        if isinstance(error, RunEnded):
            await to_its_end(partial(self._local_state.forget, run_id))
        self._report(Refused(error.code, error.detail, worker=self._name))

    async def _decline_in_passing(self, assignment_id: str, error: FedSophiaError) -> None:
        """Let nobody wait for this worker, which ends, if that can be said at once."""
        with contextlib.suppress(FedSophiaError, TimeoutError):
            async with asyncio.timeout(LAST_WORD_S):
                await self._client.decline(assignment_id, _declining(error))

    async def _evaluate(self, assignment: EvaluationAssignment) -> bool:
        """Measure a version and report it; True unless it was the one reported last."""
        try:
            state = await self._global_state.pull(assignment.run_id, assignment.tensors)
            num_examples, metrics = await self._trainer.evaluate(state)
        except NotFinite as error:  # reported without metrics, so that the server offers the next version
            self._report(Refused(error.code, error.detail, worker=self._name))
            num_examples, metrics = 1, {}
        report = parse(
            MetricsReport,
            {"version": assignment.version, "num_examples": num_examples, "metrics": metrics},
        )
        await self._persistently(partial(self._client.report_metrics, assignment.run_id, report))
        if metrics:
            self._report(Evaluated(assignment.version, metrics, worker=self._name))
        again = self._measured.get(assignment.run_id) == assignment.version
        self._measured[assignment.run_id] = assignment.version
        return not again

    async def _heard_of(self, work: Coroutine[None, None, T]) -> T:
        """Send heartbeats for as long as there is something in hand, also while it travels.

        A transfer may be out of the server's sight: a proxy that buffers bodies hides a slow one.
        """
        return await accompanied(work, self._beat(self._heartbeat_s), self._failure())

    async def _beat(self, every_s: float) -> NoReturn:
        """Send heartbeats, until the server says that it has this worker no more."""
        while True:
            await asyncio.sleep(every_s)
            try:
                await self._client.heartbeat(self._worker_id, Heartbeat())
            except NO_WORKER_ANY_MORE:
                raise
            except FedSophiaError:
                continue  # it says nothing of the work: declaring the update will tell

    async def _pause(self, attempt: int) -> None:
        await self._pauses.sleep(backoff(attempt, self._pauses.jitter()))

    async def _persistently(self, action: Callable[[], Awaitable[T]]) -> T:
        return await persistently(action, self._name, self._report, self._pauses)

    async def _despite_damage(
        self, transfer: Callable[[], Awaitable[T]], damage: tuple[type[FedSophiaError], ...]
    ) -> T:
        return await despite_damage(transfer, damage, self._name, self._report, self._pauses)


def _declining(error: FedSophiaError) -> Decline:
    said = f"{error.code}: {error.detail}"[:MAX_REASON]
    # a task's code may say anything, and what a server does not take would be said for ever
    return Decline(reason="".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in said))


async def run_worker(options: WorkerOptions, report: Report) -> None:
    """Be one worker until cancelled, or until `max_assignments` have come to an end.

    Raises:
        FedSophiaError: one that neither a pause nor the next assignment can mend.
    """
    refuse_plain_http(options.server_url, options.trust.insecure)
    name = name_before_loading(options)
    build = partial(build_trainers, options, [options.partition_index])
    async with loading(build, name, partial(chosen_device, options)) as task:
        trainer = task.trainer(0)
        await serve(options, await task.name(), trainer, report, failure=task.failure, device=task.device)


async def serve(
    options: WorkerOptions,
    task_name: str,
    trainer: Trains,
    report: Report,
    pauses: Pauses = REAL_PAUSES,
    executor: Executor | None = None,
    transport: Transport | None = None,
    fsync: Fsync = os.fsync,
    failure: Companion = for_ever,
    device: DeviceName | None = None,
) -> None:
    """Be one worker with this trainer; in a test others stand in for the network and the disk's syncs.

    Args:
        executor: where training runs; None means the loop's own threads.
        failure: raises what ends this worker, whatever it is about.
        device: what it trains on; None is not told.
    """
    aside = InThread(trainer, executor)
    await serve_aside(options, task_name, aside, report, pauses, transport, fsync, failure, device)


async def serve_aside(
    options: WorkerOptions,
    task_name: str,
    trainer: TrainsAside,
    report: Report,
    pauses: Pauses = REAL_PAUSES,
    transport: Transport | None = None,
    fsync: Fsync = os.fsync,
    failure: Companion = for_ever,
    device: DeviceName | None = None,
    shared: Shared | None = None,
) -> None:
    """The same with a trainer that finds its own thread.

    Args: shared: with other workers of this process.
    """
    shared = shared or Shared()
    with sole_user(options.state_dir):
        identity = await to_its_end(partial(identity_in, options.state_dir, options.server_url, fsync))
        tls = await accompanied(tls_for(options, report, pauses, transport, fsync), failure())
        async with (
            ServerClient(options.server_url, transport, tls=tls) as client,
            StoreClient(options.server_url, store_tls_for(options)) as store,
        ):
            enrolling = Enrolling(client, options, task_name, report, pauses, fsync, shared.coming)
            worker_id = await accompanied(enrolling.enrol_once(identity), failure())
            making = partial(
                Agent,
                options.name,
                worker_id,
                task_name,
                client,
                store,
                trainer,
                options.state_dir,
                report,
                pauses,
                fsync,
                failure,
                shared,
            )
            agent = await to_its_end(making)  # it looks through its files
            telling = (
                for_ever()
                if device is None
                else tell_device(client, worker_id, device, pauses, shared.coming)
            )
            await accompanied(agent.run(options.max_assignments), telling)
