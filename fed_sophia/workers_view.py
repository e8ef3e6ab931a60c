# SPDX-License-Identifier: Apache-2.0
"""Shows workers: those that are enrolled, and where each stands in a round.

Reasons and tasks are a worker's own words: what a terminal would take for a command is not passed on.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from rich.table import Table
from rich.text import Text

from fed_sophia.output import Fields, one_line
from protocol.messages import WorkerInRound, WorkerSummary

_IDS = {"worker", "token", "key"}
"""Columns of what other commands ask for."""


def enrolled_table(workers: Iterable[WorkerSummary]) -> Table:
    """One row a worker."""
    rows = [
        (
            worker.name,
            worker.worker_id,
            worker.role.value,
            worker.label,
            ", ".join(worker.tasks),
            worker.device or "",
            time_text(worker.last_seen_ms),
            presence_of(worker),
        )
        for worker in workers
    ]
    headings = ("name", "worker", "role", "label", "tasks", "device", "last seen (UTC)", "presence")
    return table_of(headings, rows)


def enrolled_fields(worker: WorkerSummary) -> Fields:
    """A worker for machines."""
    said: Fields = worker.model_dump(mode="json")
    return {"worker": said.pop("worker_id")} | said | {"presence": presence_of(worker)}


def presence_of(worker: WorkerSummary) -> str:
    """`present`, `lost`, `waiting` (for approval), `quarantined`, `expired` or `revoked`."""
    if worker.revoked_ms is not None:
        return "revoked"
    if worker.expired_ms is not None:
        return "expired"
    if worker.approved_ms is None:
        return "waiting"
    if worker.quarantined_ms is not None:
        return "quarantined"
    return "present" if worker.lost_ms is None else "lost"


def in_round_table(workers: Iterable[WorkerInRound]) -> Table:
    """One row a worker."""
    rows = [(str(worker.slot), worker.name, worker.standing.value, worker.reason or "") for worker in workers]
    return table_of(("slot", "name", "standing", "reason"), rows)


def in_round_fields(run_id: str, number: int, worker: WorkerInRound) -> Fields:
    """A worker's part in a round for machines."""
    said: Fields = worker.model_dump(mode="json")
    return {"run": run_id, "round": number, "worker": said.pop("worker_id")} | said


def counts_text(words: Iterable[str]) -> str:
    """How often each word occurs, the most frequent first: `3 counted, 1 lost`."""
    return ", ".join(f"{count} {word}" for word, count in Counter(words).most_common())


def time_text(at_ms: int) -> str:
    """A time for people, in UTC: `2026-03-01 12:00:05`."""
    return datetime.fromtimestamp(at_ms // 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def table_of(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table of what others said: what a terminal would take for a command is not passed on."""
    table = Table()
    for heading in headings:
        table.add_column(heading, no_wrap=heading in _IDS)  # to be copied whole
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    return table
