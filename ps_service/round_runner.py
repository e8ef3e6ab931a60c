# SPDX-License-Identifier: Apache-2.0
"""Drives the two machines: one transaction an event.

Every public method that changes something is one transition: it begins a write transaction, loads,
steps, saves state, effects and events, commits, and only then wakes whoever waits.
"""

import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from protocol.errors import (
    NotFound,
    QuorumMissing,
    RunEnded,
    UnknownTensors,
    UpdateConflict,
    UploadInterrupted,
)
from protocol.messages import Admitted, MetricsReport, Receipt, RoundStatus, RoundSummary, RunSpec, RunSummary
from ps_service import round_machine, run_machine
from ps_service.admission import require_open
from ps_service.arrivals import found_again, update_admitted, worker_declined
from ps_service.bell import Bell, task_topic, worker_topic
from ps_service.clock import Clock
from ps_service.leases import Leases
from ps_service.metrics import Meters
from ps_service.run_machine import Run
from ps_service.storage import (
    Stores,
    assignment_records,
    credential_records,
    member_records,
    report_records,
    run_records,
    update_records,
    version_records,
)
from ps_service.storage.existing import (
    missing_blobs,
    seen_blobs,
    the_assignment,
    the_round,
    the_run,
    the_worker,
)
from ps_service.storage.run_records import StoredRun
from ps_service.storage.situations import staleness_now, the_situation
from ps_service.storage.update_records import StoredUpload
from ps_service.summaries import round_summaries, run_summary
from ps_service.transitions import (
    Transition,
    announce_run,
    metrics_reported,
    round_event,
    run_event,
    write_down_sent_bytes,
)


class RoundRunner:
    """The shell around `run_machine` and `round_machine`."""

    def __init__(self, stores: Stores, clock: Clock, bell: Bell, meters: Meters) -> None:
        self.stores = stores
        self.clock = clock
        self.bell = bell
        self.meters = meters
        self.leases = Leases(stores.records)
        self._sent_bytes: Counter[str] = Counter()
        self.found_good: dict[int, set[str]] = {}
        """{effect: assignments} of updates that were looked into before they are combined."""
        self.untidy: set[str] = set()
        """Runs with rounds that ended since they were tidied last."""

    async def create_run(self, spec: RunSpec) -> RunSummary:
        """Store a run whose `params` are in the blob store already, and let workers join it.

        Raises:
            UnknownTensors: they are not.
        """
        seen = await seen_blobs(self.stores, [spec.params_digest])
        async with self.transition() as transition:
            if await missing_blobs(transition.connection, seen, [spec.params_digest]):
                raise UnknownTensors(f"params_digest: nothing is stored under {spec.params_digest}")
            run = StoredRun(f"run-{secrets.token_hex(6)}", spec, Run(), transition.now_ms)
            await run_records.add_run(transition.connection, run)
            await version_records.add_version(
                transition.connection, run.run_id, 0, None, {"params": spec.params_digest}, transition.now_ms
            )
            transition.topics.add(task_topic(spec.task))
            await announce_run(transition, run.run_id)
            return await run_summary(transition.connection, run)

    async def revoke(self, worker_id: str) -> None:
        """Take a worker's credential away at once; its open assignments count as declined.

        Raises:
            NotFound: there is no such worker.
        """
        async with self.transition() as transition:
            if await credential_records.worker_by_id(transition.connection, worker_id) is None:
                raise NotFound(f"there is no worker {worker_id}")
            await credential_records.revoke(transition.connection, worker_id, transition.now_ms)
            transition.topics.add(worker_topic(worker_id))
            for assignment in await assignment_records.open_assignments_of(transition.connection, worker_id):
                await worker_declined(transition, assignment, "the worker was revoked")

    async def admit(self, upload: StoredUpload, admitted: Admitted = Admitted.ON_ARRIVAL) -> Receipt:
        """Record an update whose bytes are sealed in the blob store; give its receipt.

        Args: admitted: when its values are found good.

        Raises:
            RoundClosed, TooStale, RunEnded, AssignmentDeclined, UpdateConflict: it came too late or second.
            UploadInterrupted: the worker declared another update while this one travelled.
            WorkerRevoked: the worker may send no more.
        """
        seen = await seen_blobs(self.stores, [upload.header.digest])
        async with self.transition() as transition:
            connection, header = transition.connection, upload.header
            situation = await the_situation(connection, upload.assignment_id)
            if situation.receipt is not None:
                return same_update(situation.receipt, header.digest)
            if situation.upload_id != upload.upload_id:
                raise UploadInterrupted("another update was declared for this assignment meanwhile")
            if await found_again(transition, situation.assignment):
                situation = await the_situation(connection, upload.assignment_id)
            # it may have lost its credential while the body was on its way
            worker = await the_worker(connection, situation.assignment.worker_id)
            if admitted is Admitted.ON_ARRIVAL:
                await credential_records.end_refusals(connection, [worker])
            staleness = await staleness_now(connection, situation)
            require_open(situation, staleness)
            if await missing_blobs(connection, seen, [header.digest]):
                raise UploadInterrupted("the bytes are gone that were received; send them again")
            await update_admitted(transition, situation, header, staleness, admitted)
            receipt = await update_records.load_receipt(connection, upload.assignment_id)
            assert receipt is not None
        self.meters.updates.inc()
        return receipt

    async def decline(self, assignment_id: str, reason: str) -> None:
        """The worker will send nothing. Repeating it, or declining a closed round, changes nothing.

        Raises:
            UpdateConflict: its update was received already.
        """
        async with self.transition() as transition:
            assignment = await the_assignment(transition.connection, assignment_id)
            if assignment.declined_reason is not None:
                return
            if await update_records.load_receipt(transition.connection, assignment_id) is not None:
                raise UpdateConflict("an update was received for this assignment; it cannot be declined")
            await worker_declined(transition, assignment, reason)

    async def close_now(self, run_id: str, number: int) -> RoundSummary:
        """Close a collecting round with what it holds; a round that is past that is left as it is.

        Raises:
            QuorumMissing: it holds too few updates.
        """
        async with self.transition() as transition:
            run = await the_run(transition.connection, run_id)
            stored = await the_round(transition.connection, run_id, number)
            round_ = await round_event(transition, run, stored, round_machine.CloseNow(transition.now_ms))
            if round_.status is RoundStatus.COLLECTING:
                raise QuorumMissing(
                    f"round {number} holds {round_.admitted} updates; the quorum is {round_.quorum}"
                )
            stored = await the_round(transition.connection, run_id, number)
            return (await round_summaries(transition.connection, run_id, [stored]))[0]

    async def cancel_run(self, run_id: str) -> RunSummary:
        """End a run and its open round; an ended run is left as it is."""
        return await self._operate(run_id, lambda now_ms, _: run_machine.RunCancelled(now_ms))

    async def pause_run(self, run_id: str) -> RunSummary:
        """Open no further round; the open one goes on to its end.

        Raises:
            RunEnded: there is nothing left to pause.
        """
        return await self._operate(run_id, lambda now_ms, _: run_machine.RunPaused(now_ms), must_be_open=True)

    async def resume_run(self, run_id: str) -> RunSummary:
        """Open rounds again; a run that is not paused is left as it is.

        Raises:
            RunEnded: there is nothing left to resume.
        """
        return await self._operate(run_id, run_machine.RunResumed, must_be_open=True)

    async def _operate(
        self,
        run_id: str,
        event: Callable[[int, tuple[int, ...]], run_machine.RunEvent],
        *,
        must_be_open: bool = False,
    ) -> RunSummary:
        async with self.transition() as transition:
            run = await the_run(transition.connection, run_id)
            if must_be_open and run.state.status.ended:
                raise RunEnded(f"the run is {run.state.status.value}")
            slots = tuple(await member_records.eligible_slots(transition.connection, run_id))
            await run_event(transition, run, event(transition.now_ms, slots))
            return await run_summary(transition.connection, await the_run(transition.connection, run_id))

    async def report_metrics(self, run_id: str, worker_id: str, report: MetricsReport) -> None:
        """Store an evaluator's metrics of a version; its first report stands.

        Raises:
            NotFound: the run has no such version.
        """
        async with self.transition() as transition:
            run = await the_run(transition.connection, run_id)
            if report.version > run.state.version:
                raise NotFound(f"version {report.version}: the run has versions up to {run.state.version}")
            if await report_records.add_report(
                transition.connection, run_id, worker_id, report, transition.now_ms
            ):
                await metrics_reported(transition, run, report.version)

    def count_sent(self, run_id: str, size_bytes: int, *, to_trainer: bool) -> None:
        """Note tensor bytes sent for a run; those of its trainers are written down when its round ends."""
        self.meters.sent_bytes.inc(size_bytes)
        if to_trainer:
            self._sent_bytes[run_id] += size_bytes

    async def write_down_sent(self) -> None:
        """Where other servers end rounds, too: what this one has sent belongs to the rounds that are open."""
        for run_id in [run_id for run_id, sent in self._sent_bytes.items() if sent]:
            async with self.transition() as transition:
                run = await the_run(transition.connection, run_id)
                await write_down_sent_bytes(transition, run_id, run.state.round)

    @asynccontextmanager
    async def transition(self) -> AsyncIterator[Transition]:
        async with self.stores.records.write() as connection:
            transition = Transition(connection, self.clock.now_ms(), self._sent_bytes)
            yield transition
            await self.stores.records.announce(connection, transition.topics)
        self._sent_bytes.subtract(transition.written_down)
        self.untidy |= transition.untidy
        for round_ in transition.ended:
            self.meters.rounds.labels(status=round_.status.value).inc()
            self.meters.round_seconds.observe(((round_.ended_ms or 0) - round_.opened_ms) / 1000)
            self._observe_staleness(round_)
        self.bell.ring(transition.topics)

    def _observe_staleness(self, round_: round_machine.Round) -> None:
        if round_.status is RoundStatus.COMMITTED:
            for staleness, count in enumerate(round_.staleness):
                for _ in range(count):
                    self.meters.staleness.observe(staleness)


def same_update(held: Receipt, digest: str) -> Receipt:
    """The receipt of an update that is held, if it is the one now offered.

    Raises:
        UpdateConflict: it is another.
    """
    if held.digest != digest:
        raise UpdateConflict("another update, with another digest, was received for this assignment")
    return held
