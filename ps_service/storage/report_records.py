# SPDX-License-Identifier: Apache-2.0
"""Queries: metrics that evaluators reported, and the events that listeners follow."""

from dataclasses import dataclass

from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.messages import MetricsReport
from ps_service.storage.schema import events, metrics


@dataclass(frozen=True)
class StoredEvent:
    """Something a listener may want to know; `data` is JSON."""

    event_id: int
    kind: str
    data: str


async def add_report(
    connection: AsyncConnection, run_id: str, worker_id: str, report: MetricsReport, now_ms: int
) -> bool:
    """Store an evaluator's report; False (and no change) if it has reported on this version before."""
    query = select(metrics.c.version).where(
        metrics.c.run_id == run_id, metrics.c.version == report.version, metrics.c.worker_id == worker_id
    )
    if (await connection.execute(query)).first() is not None:
        return False
    await connection.execute(
        insert(metrics).values(
            run_id=run_id,
            version=report.version,
            worker_id=worker_id,
            report=report.model_dump_json(),
            received_ms=now_ms,
        )
    )
    return True


async def reports_of(
    connection: AsyncConnection, run_id: str, first: int, last: int
) -> dict[int, list[MetricsReport]]:
    """{version: reports} of a run's versions `first` … `last`."""
    query = select(metrics).where(metrics.c.run_id == run_id, metrics.c.version.between(first, last))
    query = query.order_by(metrics.c.worker_id)
    reports: dict[int, list[MetricsReport]] = {}
    for row in await connection.execute(query):
        reports.setdefault(row.version, []).append(MetricsReport.model_validate_json(row.report))
    return reports


async def versions_reported_by(connection: AsyncConnection, run_id: str, worker_id: str) -> set[int]:
    rows = await connection.execute(
        select(metrics.c.version).where(metrics.c.run_id == run_id, metrics.c.worker_id == worker_id)
    )
    return set(rows.scalars())


async def add_event(
    connection: AsyncConnection, run_id: str, kind: str, number: int | None, data: str, now_ms: int
) -> None:
    await connection.execute(
        insert(events).values(run_id=run_id, kind=kind, round=number, at_ms=now_ms, data=data)
    )


async def latest_event(connection: AsyncConnection, run_id: str) -> int:
    """The id of a run's newest event; 0: there is none."""
    newest = select(func.max(events.c.event_id)).where(events.c.run_id == run_id)
    return (await connection.execute(newest)).scalar() or 0


async def events_after(
    connection: AsyncConnection, run_id: str, event_id: int, limit: int = 200
) -> list[StoredEvent]:
    rows = await connection.execute(
        select(events)
        .where(events.c.run_id == run_id, events.c.event_id > event_id)
        .order_by(events.c.event_id)
        .limit(limit)
    )
    return [StoredEvent(row.event_id, row.kind, row.data) for row in rows]
