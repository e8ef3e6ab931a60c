# SPDX-License-Identifier: Apache-2.0
"""Queries: assignments, and what their workers are at."""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Row, bindparam, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ps_service.storage.ready import Ready
from ps_service.storage.schema import assignments, rounds

_OPEN_ASSIGNMENTS = (
    select(assignments)
    .join(rounds, (rounds.c.run_id == assignments.c.run_id) & (rounds.c.number == assignments.c.round))
    .where(assignments.c.settled.is_(False))
    .order_by(rounds.c.deadline_ms, assignments.c.assignment_id)
)
# built once: every wait for an assignment asks it
_OF_WORKERS = _OPEN_ASSIGNMENTS.where(assignments.c.worker_id.in_(bindparam("worker_ids", expanding=True)))


_ASSIGNMENT = Ready(select(assignments).where(assignments.c.assignment_id == bindparam("assignment_id")))


@dataclass(frozen=True)
class StoredAssignment:
    """What ties a worker to a round; the rest of an assignment follows from run, version, slot and turn."""

    assignment_id: str
    run_id: str
    round: int
    """In which it was given; in an asynchronous run it outlasts it."""
    version: int
    """From which the update is made."""
    worker_id: str
    slot: int
    turn: int
    """Number of the slot's assignments in an asynchronous run, this one included; otherwise the round's."""
    declined_reason: str | None = None
    refused_code: str | None = None
    """Of the last update sent for it that was not taken."""
    lost_ms: int | None = None
    """Since when its worker is not heard of."""
    settled: bool = False


async def add_assignments(connection: AsyncConnection, rows: list[StoredAssignment]) -> None:
    await connection.execute(insert(assignments), [vars(row) for row in rows])


async def load_assignment(connection: AsyncConnection, assignment_id: str) -> StoredAssignment | None:
    row = await _ASSIGNMENT.first(connection, assignment_id=assignment_id)
    return None if row is None else assignment_in(row)


async def open_assignments_of(connection: AsyncConnection, worker_id: str) -> list[StoredAssignment]:
    """Those that are not settled, the most urgent first."""
    query = _OPEN_ASSIGNMENTS.where(assignments.c.worker_id == worker_id)
    return [assignment_in(row) for row in await connection.execute(query)]


async def next_assignments_of(
    connection: AsyncConnection, worker_ids: Collection[str]
) -> dict[str, StoredAssignment]:
    """{worker_id: its most urgent assignment that is not settled} of those of these workers who have one."""
    rows = await connection.execute(_OF_WORKERS, {"worker_ids": list(worker_ids)})
    following: dict[str, StoredAssignment] = {}
    for row in rows:
        following.setdefault(row.worker_id, assignment_in(row))
    return following


async def decline(connection: AsyncConnection, assignment_id: str, reason: str) -> None:
    await connection.execute(
        update(assignments)
        .where(assignments.c.assignment_id == assignment_id)
        .values(declined_reason=reason, settled=True)
    )


async def set_assignment_lost(connection: AsyncConnection, assignment_id: str, lost_ms: int | None) -> None:
    """Its worker is no longer heard of; None: it is there again."""
    await connection.execute(
        update(assignments).where(assignments.c.assignment_id == assignment_id).values(lost_ms=lost_ms)
    )


async def note_refusal(connection: AsyncConnection, assignment_id: str, code: str) -> None:
    """An update that was sent for this assignment was not taken."""
    await connection.execute(
        update(assignments).where(assignments.c.assignment_id == assignment_id).values(refused_code=code)
    )


async def settle_round(connection: AsyncConnection, run_id: str, number: int) -> None:
    """Nobody is asked for this round's updates any more."""
    await connection.execute(
        update(assignments)
        .where(assignments.c.run_id == run_id, assignments.c.round == number)
        .values(settled=True)
    )


async def settle_older_than(connection: AsyncConnection, run_id: str, version: int | None) -> None:
    """Nobody is asked any more for updates made from versions before this one; None: for any of the run's."""
    older = (assignments.c.run_id == run_id) & assignments.c.settled.is_(False)
    if version is not None:
        older &= assignments.c.version < version
    await connection.execute(update(assignments).where(older).values(settled=True))


async def set_all_lost(connection: AsyncConnection, run_id: str, lost_ms: int) -> None:
    """None of a run's open assignments holds a place any longer; their updates may still come."""
    await connection.execute(
        update(assignments)
        .where(
            assignments.c.run_id == run_id, assignments.c.settled.is_(False), assignments.c.lost_ms.is_(None)
        )
        .values(lost_ms=lost_ms)
    )


async def count_in_hand(connection: AsyncConnection, run_id: str) -> int:
    """How many of a run's assignments their workers are at, as far as is known."""
    query = select(func.count()).where(
        assignments.c.run_id == run_id, assignments.c.settled.is_(False), assignments.c.lost_ms.is_(None)
    )
    return (await connection.execute(query)).scalar_one()


def assignment_in(row: Row[tuple[object, ...]]) -> StoredAssignment:
    return StoredAssignment(
        row.assignment_id,
        row.run_id,
        row.round,
        row.version,
        row.worker_id,
        row.slot,
        row.turn,
        row.declined_reason,
        row.refused_code,
        row.lost_ms,
        row.settled,
    )
