# SPDX-License-Identifier: Apache-2.0
"""Queries: runs, their rounds, versions and members."""

import json
from dataclasses import dataclass
from functools import lru_cache

from pydantic import TypeAdapter
from sqlalchemy import Row, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.messages import RoundStatus, RunSpec, RunStatus, VersionSummary
from ps_service.round_machine import Round
from ps_service.run_machine import Run
from ps_service.storage.schema import members, rounds, runs, state_tensors, versions, workers

MOST_ROWS = 1000
"""No listing is longer than this."""

_RUN = TypeAdapter(Run)
_ROUND = TypeAdapter(Round)


@dataclass(frozen=True)
class StoredRun:
    """A run with its fixed definition and where it stands."""

    run_id: str
    spec: RunSpec
    state: Run
    created_ms: int


@dataclass(frozen=True)
class StoredRound:
    """A round with what passed over the wire for it."""

    run_id: str
    state: Round
    bytes_up: int
    bytes_down: int


@lru_cache(maxsize=64)
def _spec(text: str) -> RunSpec:
    return RunSpec.model_validate_json(text)


# --- runs --------------------------------------------------------------------------------------


async def add_run(connection: AsyncConnection, run: StoredRun) -> None:
    await connection.execute(
        insert(runs).values(
            run_id=run.run_id,
            task=run.spec.task,
            status=run.state.status.value,
            spec=run.spec.model_dump_json(),
            state=_RUN.dump_json(run.state).decode(),
            created_ms=run.created_ms,
        )
    )


async def load_run(connection: AsyncConnection, run_id: str) -> StoredRun | None:
    row = (await connection.execute(select(runs).where(runs.c.run_id == run_id))).first()
    return None if row is None else _run(row)


async def save_run(connection: AsyncConnection, run_id: str, state: Run) -> None:
    await connection.execute(
        update(runs)
        .where(runs.c.run_id == run_id)
        .values(status=state.status.value, state=_RUN.dump_json(state).decode())
    )


async def list_runs(
    connection: AsyncConnection, after: StoredRun | None = None, limit: int = MOST_ROWS
) -> list[StoredRun]:
    """Newest first, beginning behind `after`."""
    query = select(runs).order_by(runs.c.created_ms.desc(), runs.c.run_id).limit(limit)
    if after is not None:
        same_time = (runs.c.created_ms == after.created_ms) & (runs.c.run_id > after.run_id)
        query = query.where((runs.c.created_ms < after.created_ms) | same_time)
    return [_run(row) for row in await connection.execute(query)]


async def open_runs(connection: AsyncConnection, tasks: tuple[str, ...] | None = None) -> list[StoredRun]:
    """Runs that have not ended, of these tasks or of all, oldest first."""
    query = select(runs).where(runs.c.status.in_([status for status in RunStatus if not status.ended]))
    if tasks is not None:
        query = query.where(runs.c.task.in_(tasks))
    return [_run(row) for row in await connection.execute(query.order_by(runs.c.created_ms, runs.c.run_id))]


async def runs_of_tasks(connection: AsyncConnection, tasks: tuple[str, ...]) -> list[StoredRun]:
    """All runs of these tasks, oldest first."""
    rows = await connection.execute(
        select(runs).where(runs.c.task.in_(tasks)).order_by(runs.c.created_ms, runs.c.run_id)
    )
    return [_run(row) for row in rows]


def _run(row: Row[tuple[object, ...]]) -> StoredRun:
    return StoredRun(row.run_id, _spec(row.spec), _RUN.validate_json(row.state), row.created_ms)


# --- rounds ------------------------------------------------------------------------------------


async def add_round(connection: AsyncConnection, run_id: str, state: Round) -> None:
    await connection.execute(
        insert(rounds).values(
            run_id=run_id,
            number=state.number,
            status=state.status.value,
            deadline_ms=state.deadline_ms,
            state=_ROUND.dump_json(state).decode(),
            bytes_up=0,
            bytes_down=0,
        )
    )


async def load_round(connection: AsyncConnection, run_id: str, number: int) -> StoredRound | None:
    query = select(rounds).where(rounds.c.run_id == run_id, rounds.c.number == number)
    row = (await connection.execute(query)).first()
    return None if row is None else _round(row)


async def save_round(connection: AsyncConnection, run_id: str, state: Round) -> None:
    await connection.execute(
        update(rounds)
        .where(rounds.c.run_id == run_id, rounds.c.number == state.number)
        .values(
            status=state.status.value,
            deadline_ms=state.deadline_ms,
            state=_ROUND.dump_json(state).decode(),
        )
    )


async def add_round_traffic(
    connection: AsyncConnection, run_id: str, number: int, *, bytes_up: int = 0, bytes_down: int = 0
) -> None:
    await connection.execute(
        update(rounds)
        .where(rounds.c.run_id == run_id, rounds.c.number == number)
        .values(bytes_up=rounds.c.bytes_up + bytes_up, bytes_down=rounds.c.bytes_down + bytes_down)
    )


async def list_rounds(
    connection: AsyncConnection, run_id: str, after: int = 0, limit: int = MOST_ROWS
) -> list[StoredRound]:
    """Oldest first, beginning behind round `after`."""
    query = select(rounds).where(rounds.c.run_id == run_id, rounds.c.number > after)
    rows = await connection.execute(query.order_by(rounds.c.number).limit(limit))
    return [_round(row) for row in rows]


async def collecting_rounds(connection: AsyncConnection) -> list[StoredRound]:
    """All rounds that still take updates, earliest deadline first."""
    rows = await connection.execute(
        select(rounds).where(rounds.c.status == RoundStatus.COLLECTING).order_by(rounds.c.deadline_ms)
    )
    return [_round(row) for row in rows]


def _round(row: Row[tuple[object, ...]]) -> StoredRound:
    return StoredRound(row.run_id, _ROUND.validate_json(row.state), row.bytes_up, row.bytes_down)


# --- versions ----------------------------------------------------------------------------------


async def add_version(
    connection: AsyncConnection,
    run_id: str,
    version: int,
    round_number: int | None,
    tensors: dict[str, str],
    now_ms: int,
) -> None:
    """Record a version and let its digests be read by the run's workers."""
    await connection.execute(
        insert(versions).values(
            run_id=run_id,
            version=version,
            round=round_number,
            tensors=json.dumps(tensors),
            created_ms=now_ms,
        )
    )
    digests = set(tensors.values())
    known = await connection.execute(
        select(state_tensors.c.digest).where(
            state_tensors.c.run_id == run_id, state_tensors.c.digest.in_(digests)
        )
    )
    missing = digests - set(known.scalars())
    if missing:
        await connection.execute(
            insert(state_tensors), [{"run_id": run_id, "digest": digest} for digest in sorted(missing)]
        )


async def tensors_of(connection: AsyncConnection, run_id: str, version: int) -> dict[str, str]:
    """{bundle: digest} of a version that exists."""
    query = select(versions.c.tensors).where(versions.c.run_id == run_id, versions.c.version == version)
    tensors: dict[str, str] = json.loads((await connection.execute(query)).scalar_one())
    return tensors


async def list_versions(
    connection: AsyncConnection, run_id: str, after: int = -1, limit: int = MOST_ROWS
) -> list[VersionSummary]:
    """Oldest first, beginning behind version `after`."""
    query = select(versions).where(versions.c.run_id == run_id, versions.c.version > after)
    rows = await connection.execute(query.order_by(versions.c.version).limit(limit))
    return [
        VersionSummary(version=row.version, tensors=json.loads(row.tensors), created_ms=row.created_ms)
        for row in rows
    ]


async def is_state_of(connection: AsyncConnection, run_id: str, digest: str) -> bool:
    query = select(state_tensors).where(state_tensors.c.run_id == run_id, state_tensors.c.digest == digest)
    return (await connection.execute(query)).first() is not None


# --- members -----------------------------------------------------------------------------------


async def is_member(connection: AsyncConnection, run_id: str, worker_id: str) -> bool:
    query = select(members).where(members.c.run_id == run_id, members.c.worker_id == worker_id)
    return (await connection.execute(query)).first() is not None


async def add_member(connection: AsyncConnection, run_id: str, worker_id: str) -> None:
    """Let a worker wait for a slot; nothing if it has come before."""
    if not await is_member(connection, run_id, worker_id):
        await connection.execute(insert(members).values(run_id=run_id, worker_id=worker_id))


async def give_slots(connection: AsyncConnection, run_id: str) -> None:
    """Number the members without a slot that are not revoked, after those with one, by their names.

    Not by arrival: the sum of a round is taken in slot order, and must not depend on who came first.
    """
    taken = select(func.max(members.c.slot)).where(members.c.run_id == run_id)
    highest = (await connection.execute(taken)).scalar()
    next_slot = 0 if highest is None else highest + 1
    waiting = await connection.execute(
        select(members.c.worker_id)
        .join(workers, workers.c.worker_id == members.c.worker_id)
        .where(members.c.run_id == run_id, members.c.slot.is_(None), workers.c.revoked_ms.is_(None))
        .order_by(workers.c.name, workers.c.worker_id)
    )
    for slot, worker_id in enumerate(waiting.scalars().all(), start=next_slot):
        await connection.execute(
            update(members)
            .where(members.c.run_id == run_id, members.c.worker_id == worker_id)
            .values(slot=slot)
        )


async def eligible_slots(connection: AsyncConnection, run_id: str) -> dict[int, str]:
    """{slot: worker_id} of the members that are not revoked, by slot."""
    rows = await connection.execute(
        select(members.c.slot, members.c.worker_id)
        .join(workers, workers.c.worker_id == members.c.worker_id)
        .where(members.c.run_id == run_id, members.c.slot.is_not(None), workers.c.revoked_ms.is_(None))
        .order_by(members.c.slot)
    )
    return {row.slot: row.worker_id for row in rows}


async def count_members(connection: AsyncConnection, run_id: str) -> int:
    """How many workers have come and are not revoked, with or without a slot."""
    query = (
        select(func.count())
        .select_from(members)
        .join(workers, workers.c.worker_id == members.c.worker_id)
        .where(members.c.run_id == run_id, workers.c.revoked_ms.is_(None))
    )
    return (await connection.execute(query)).scalar_one()


async def runs_of_worker(connection: AsyncConnection, worker_id: str) -> list[str]:
    rows = await connection.execute(select(members.c.run_id).where(members.c.worker_id == worker_id))
    return list(rows.scalars())
