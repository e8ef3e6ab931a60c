# SPDX-License-Identifier: Apache-2.0
"""What the server says of runs and rounds, gathered from the records."""

import sys
from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.messages import (
    Assignment,
    EvaluationAssignment,
    MetricsReport,
    RoundStatus,
    RoundSummary,
    RunSpec,
    RunSummary,
    UpdateHeader,
)
from ps_service import assigning
from ps_service.storage import (
    archive_records,
    member_records,
    report_records,
    run_records,
    update_records,
    version_records,
)
from ps_service.storage.assignment_records import StoredAssignment
from ps_service.storage.credential_records import StoredWorker
from ps_service.storage.known import Known
from ps_service.storage.run_records import StoredRound, StoredRun

EVALUATIONS_BEHIND = 100
"""So many versions of a run, the newest, are offered before older ones."""

ADDED_UP = frozenset({"energy_joules"})
"""Metrics of workers that are a round's when they are added up; of all others it has the mean."""


async def run_summary(connection: AsyncConnection, run: StoredRun) -> RunSummary:
    return RunSummary(
        run_id=run.run_id,
        spec=run.spec,
        status=run.state.status,
        reason=run.state.reason,
        round=run.state.round,
        version=run.state.version,
        tensors=await version_records.tensors_of(connection, run.run_id, run.state.version),
        members=await member_records.count_members(connection, run.run_id),
        created_ms=run.created_ms,
        ended_ms=run.state.ended_ms,
    )


async def round_summaries(
    connection: AsyncConnection, run_id: str, rounds: Sequence[StoredRound]
) -> list[RoundSummary]:
    """One summary for each of these rounds of a run, ascending, with the metrics that have arrived."""
    if not rounds:
        return []
    first, last = rounds[0].state, rounds[-1].state
    headers = await update_records.headers_of_rounds(connection, run_id, first.number, last.number)
    reports = await report_records.reports_of(
        connection, run_id, first.base_version + 1, last.base_version + 1
    )
    archived = await archive_records.archived_metrics(connection, run_id, first.number, last.number)
    summaries = []
    for stored in rounds:
        state = stored.state
        version = state.base_version + 1 if state.status is RoundStatus.COMMITTED else None
        metrics = archived.get(state.number, {}) | metrics_of_workers(headers.get(state.number, []))
        if version is not None:
            metrics |= mean_of_reports(reports.get(version, []))
        summaries.append(
            RoundSummary(
                round=state.number,
                status=state.status,
                reason=state.reason,
                base_version=state.base_version,
                version=version,
                invited=state.invited,
                admitted=state.admitted,
                declined=state.declined,
                lost=state.lost,
                refused=state.refused,
                opened_ms=state.opened_ms,
                deadline_ms=state.deadline_ms,
                last_admitted_ms=state.last_admitted_ms,
                ended_ms=state.ended_ms,
                bytes_up=stored.bytes_up,
                bytes_down=stored.bytes_down,
                metrics=metrics,
                staleness=state.staleness,
            )
        )
    return summaries


def metrics_of_workers(headers: Sequence[UpdateHeader]) -> dict[str, float]:
    """Over the workers that reported a metric: its plain mean, or the sum of what adds up."""
    values: dict[str, list[float]] = {}
    for header in headers:
        for name, value in header.metrics.items():
            values.setdefault(name, []).append(value)
    means = {name: _mean([(value, 1) for value in of_name]) for name, of_name in sorted(values.items())}
    return {
        name: _finite(mean * len(values[name])) if name in ADDED_UP else mean for name, mean in means.items()
    }


def mean_of_reports(reports: Sequence[MetricsReport]) -> dict[str, float]:
    """Mean over evaluators, weighted by how many examples each evaluated."""
    values: dict[str, list[tuple[float, int]]] = {}
    for report in reports:
        for name, value in report.metrics.items():
            values.setdefault(name, []).append((value, report.num_examples))
    return {name: _mean(of_name) for name, of_name in sorted(values.items())}


def _mean(weighted: Sequence[tuple[float, int]]) -> float:
    """Σ v·w / Σ w, finite whatever finite values were reported: JSON has no word for infinity."""
    total = sum(weight for _, weight in weighted)
    return _finite(sum(value * (weight / total) for value, weight in weighted))


def _finite(value: float) -> float:
    return min(max(value, -sys.float_info.max), sys.float_info.max)


def bundles_wanted(spec: RunSpec, assignment: StoredAssignment) -> tuple[str, ...]:
    """What the update of an assignment must carry."""
    return assigning.bundles_wanted(spec, assignment.version, assignment.turn)


async def assignment_of(known: Known, stored: StoredAssignment, heartbeat_s: float) -> Assignment:
    """Everything a worker is told about its part of a round."""
    run = await known.run(stored.run_id)
    round_ = await known.round(stored.run_id, stored.round)
    part = assigning.Part(
        assignment_id=stored.assignment_id,
        run_id=run.run_id,
        round=stored.round,
        version=stored.version,
        slot=stored.slot,
        turn=stored.turn,
        deadline_ms=round_.state.deadline_ms,
        heartbeat_s=heartbeat_s,
    )
    return assigning.assignment(run.spec, part, await known.tensors(run.run_id, stored.version))


async def next_evaluation(
    connection: AsyncConnection, worker: StoredWorker, heartbeat_s: float
) -> EvaluationAssignment | None:
    """The version this evaluator should measure next: runs that go on first, then the newest.

    Within a run the oldest of its newest unmeasured versions: who falls behind is not behind for ever.
    """
    runs = [
        run
        for run in await run_records.runs_of_tasks(connection, worker.tasks)
        if worker.may_serve(run.run_id, run.spec.task)
    ]
    for run in sorted(runs, key=lambda run: (run.state.status.ended, -run.created_ms)):
        reported = await report_records.versions_reported_by(connection, run.run_id, worker.worker_id)
        kept = await version_records.versions_with_tensors(connection, run.run_id)
        unmeasured = [each.version for each in kept if each.version and each.version not in reported]
        if unmeasured:
            version = unmeasured[-EVALUATIONS_BEHIND:][0]
            return EvaluationAssignment(
                run_id=run.run_id,
                version=version,
                task=run.spec.task,
                tensors=assigning.sent_down(
                    run.spec, await version_records.tensors_of(connection, run.run_id, version)
                ),
                heartbeat_s=heartbeat_s,
            )
    return None
