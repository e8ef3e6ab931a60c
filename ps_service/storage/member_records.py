# SPDX-License-Identifier: Apache-2.0
"""Queries: the workers that take part in a run, and their slots."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ps_service.storage.schema import assignments, members, workers


@dataclass(frozen=True)
class Idle:
    """A member that may be given something to do."""

    slot: int
    worker_id: str
    turns: int
    """Assignments it was given in this run, if that is an asynchronous one."""


_IS_THERE = workers.c.revoked_ms.is_(None) & workers.c.lost_ms.is_(None)


async def is_member(connection: AsyncConnection, run_id: str, worker_id: str) -> bool:
    query = select(members).where(members.c.run_id == run_id, members.c.worker_id == worker_id)
    return (await connection.execute(query)).first() is not None


async def add_member(connection: AsyncConnection, run_id: str, worker_id: str) -> None:
    """Let a worker wait for a slot; nothing if it has come before."""
    if not await is_member(connection, run_id, worker_id):
        await connection.execute(insert(members).values(run_id=run_id, worker_id=worker_id, turns=0))


async def has_slots(connection: AsyncConnection, run_id: str) -> bool:
    """Whether any member has been numbered."""
    query = select(members.c.slot).where(members.c.run_id == run_id, members.c.slot.is_not(None)).limit(1)
    return (await connection.execute(query)).first() is not None


async def give_slots(connection: AsyncConnection, run_id: str) -> None:
    """Number the members without a slot that are there, after those with one, by their names.

    Not by arrival: the sum of a round is taken in slot order, and must not depend on who came first.
    """
    taken = select(func.max(members.c.slot)).where(members.c.run_id == run_id)
    highest = (await connection.execute(taken)).scalar()
    next_slot = 0 if highest is None else highest + 1
    waiting = await connection.execute(
        select(members.c.worker_id)
        .join(workers, workers.c.worker_id == members.c.worker_id)
        .where(members.c.run_id == run_id, members.c.slot.is_(None), _IS_THERE)
        .order_by(workers.c.name, workers.c.worker_id)
    )
    for slot, worker_id in enumerate(waiting.scalars().all(), start=next_slot):
        await connection.execute(
            update(members)
            .where(members.c.run_id == run_id, members.c.worker_id == worker_id)
            .values(slot=slot)
        )


async def eligible_slots(connection: AsyncConnection, run_id: str) -> dict[int, str]:
    """{slot: worker_id} of the members that are there, by slot."""
    rows = await connection.execute(
        select(members.c.slot, members.c.worker_id)
        .join(workers, workers.c.worker_id == members.c.worker_id)
        .where(members.c.run_id == run_id, members.c.slot.is_not(None), _IS_THERE)
        .order_by(members.c.slot)
    )
    return {row.slot: row.worker_id for row in rows}


async def idle_members(connection: AsyncConnection, run_id: str, most: int) -> list[Idle]:
    """Members that are there and have no open assignment of the run: those with the fewest turns first."""
    open_assignment = select(assignments.c.assignment_id).where(
        assignments.c.run_id == run_id,
        assignments.c.worker_id == members.c.worker_id,
        assignments.c.settled.is_(False),
    )
    rows = await connection.execute(
        select(members.c.slot, members.c.worker_id, members.c.turns)
        .join(workers, workers.c.worker_id == members.c.worker_id)
        .where(members.c.run_id == run_id, members.c.slot.is_not(None), _IS_THERE)
        .where(~open_assignment.exists())
        .order_by(members.c.turns, members.c.slot)
        .limit(most)
    )
    return [Idle(row.slot, row.worker_id, row.turns) for row in rows]


async def take_turns(connection: AsyncConnection, run_id: str, worker_ids: Sequence[str]) -> None:
    """Each of these members has one more turn."""
    await connection.execute(
        update(members)
        .where(members.c.run_id == run_id, members.c.worker_id.in_(worker_ids))
        .values(turns=members.c.turns + 1)
    )


async def count_members(connection: AsyncConnection, run_id: str) -> int:
    """How many workers have come and are there, with or without a slot."""
    query = (
        select(func.count())
        .select_from(members)
        .join(workers, workers.c.worker_id == members.c.worker_id)
        .where(members.c.run_id == run_id, _IS_THERE)
    )
    return (await connection.execute(query)).scalar_one()


async def runs_of_worker(connection: AsyncConnection, worker_id: str) -> list[str]:
    rows = await connection.execute(select(members.c.run_id).where(members.c.worker_id == worker_id))
    return list(rows.scalars())
