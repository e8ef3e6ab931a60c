# SPDX-License-Identifier: Apache-2.0
"""Queries: the workers that take part in a run, and their slots."""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import bindparam, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ps_service.storage.in_parts import in_parts
from ps_service.storage.schema import assignments, members, workers


@dataclass(frozen=True)
class Free:
    """A member that may be given something to do."""

    slot: int
    worker_id: str
    turns: int
    """Assignments it was given in this run, if that is an asynchronous one."""


_IS_THERE = (
    workers.c.revoked_ms.is_(None)
    & workers.c.lost_ms.is_(None)
    & workers.c.expired_ms.is_(None)
    & workers.c.quarantined_ms.is_(None)
)


async def is_member(connection: AsyncConnection, run_id: str, worker_id: str) -> bool:
    query = select(members).where(members.c.run_id == run_id, members.c.worker_id == worker_id)
    return (await connection.execute(query)).first() is not None


async def add_members(
    connection: AsyncConnection, run_id: str, worker_ids: Collection[str], now_ms: int
) -> None:
    """Let workers wait for slots; those who have come before do already."""
    before = await connection.execute(
        select(members.c.worker_id).where(members.c.run_id == run_id, members.c.worker_id.in_(worker_ids))
    )
    new = sorted(set(worker_ids) - set(before.scalars()))
    if new:
        row = {"run_id": run_id, "slot": None, "turns": 0, "free_since_ms": now_ms}
        await connection.execute(insert(members), [row | {"worker_id": worker_id} for worker_id in new])


async def has_slots(connection: AsyncConnection, run_id: str) -> bool:
    """Whether any member has been numbered."""
    query = select(members.c.slot).where(members.c.run_id == run_id, members.c.slot.is_not(None)).limit(1)
    return (await connection.execute(query)).first() is not None


async def give_slots(connection: AsyncConnection, run_id: str) -> None:
    """Number the members without a slot that are there, after those with one, by their names.

    Not by arrival: the sum of a round is taken in slot order, and must not depend on who came first.
    """
    without = select(members.c.worker_id).where(members.c.run_id == run_id, members.c.slot.is_(None)).limit(1)
    if (await connection.execute(without)).first() is None:
        return
    taken = select(func.max(members.c.slot)).where(members.c.run_id == run_id)
    highest = (await connection.execute(taken)).scalar()
    next_slot = 0 if highest is None else highest + 1
    waiting = await connection.execute(
        select(members.c.worker_id)
        .join(workers, workers.c.worker_id == members.c.worker_id)
        .where(members.c.run_id == run_id, members.c.slot.is_(None), _IS_THERE)
        .order_by(workers.c.name, workers.c.worker_id)
    )
    given = [
        {"worker": worker_id, "given": slot}
        for slot, worker_id in enumerate(waiting.scalars().all(), start=next_slot)
    ]
    if given:
        await connection.execute(
            update(members)
            .where(members.c.run_id == run_id, members.c.worker_id == bindparam("worker"))
            .values(slot=bindparam("given")),
            given,
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


async def free_members(
    connection: AsyncConnection, run_id: str, number: int, most: int, most_of_each: int
) -> list[Free]:
    """Members that are there and have nothing to do in this run, the longest free first.

    But for those who have declined in round `number`, or were given `most_of_each` assignments in it.
    """
    given = (assignments.c.run_id == run_id) & (assignments.c.round == number)
    given &= assignments.c.slot == members.c.slot
    declined = select(assignments.c.slot).where(given, assignments.c.declined_reason.is_not(None))
    rows = await connection.execute(
        select(members.c.slot, members.c.worker_id, members.c.turns)
        .join(workers, workers.c.worker_id == members.c.worker_id)
        .where(members.c.run_id == run_id, members.c.free_since_ms.is_not(None))
        .where(members.c.slot.is_not(None), _IS_THERE, ~declined.exists())
        .where(select(func.count()).where(given).scalar_subquery() < most_of_each)
        .order_by(members.c.free_since_ms, members.c.slot)
        .limit(most)
    )
    return [Free(row.slot, row.worker_id, row.turns) for row in rows]


async def take_turns(connection: AsyncConnection, run_id: str, worker_ids: Collection[str]) -> None:
    """Each of these members has one more turn, and something to do."""
    for some in in_parts(worker_ids):
        await connection.execute(
            update(members)
            .where(members.c.run_id == run_id, members.c.worker_id.in_(some))
            .values(turns=members.c.turns + 1, free_since_ms=None)
        )


async def set_free(
    connection: AsyncConnection, run_id: str, worker_ids: Collection[str], now_ms: int
) -> None:
    """These members have done what they had to do, or ask for something new. Who was free stays so."""
    for some in in_parts(worker_ids):
        await connection.execute(
            update(members)
            .where(members.c.run_id == run_id, members.c.worker_id.in_(some))
            .where(members.c.free_since_ms.is_(None))
            .values(free_since_ms=now_ms)
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


async def memberships(
    connection: AsyncConnection, run_ids: Collection[str], worker_ids: Collection[str]
) -> dict[tuple[str, str], bool]:
    """{(run, worker): whether it is free} of those of these workers who are members of these runs."""
    rows = await connection.execute(
        select(members.c.run_id, members.c.worker_id, members.c.free_since_ms).where(
            members.c.run_id.in_(run_ids), members.c.worker_id.in_(worker_ids)
        )
    )
    return {(row.run_id, row.worker_id): row.free_since_ms is not None for row in rows}
