# SPDX-License-Identifier: Apache-2.0
"""Queries: runs and their rounds."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

from pydantic import TypeAdapter
from sqlalchemy import Row, bindparam, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.messages import RoundStatus, RunSpec, RunStatus
from ps_service.round_machine import Round
from ps_service.run_machine import Run
from ps_service.storage.one_visit import QUICK
from ps_service.storage.ready import Ready
from ps_service.storage.schema import rounds, runs

MOST_ROWS = 1000
"""No listing is longer than this."""

# built once: what every request asks
_OPEN_RUN_IDS = (
    select(runs.c.run_id, runs.c.task)
    .where(
        runs.c.status.in_([status for status in RunStatus if not status.ended]),
        runs.c.task.in_(bindparam("tasks", expanding=True)),
    )
    .order_by(runs.c.created_ms, runs.c.run_id)
)
_RUN_OF_ID = Ready(select(runs).where(runs.c.run_id == bindparam("run_id")))
_ROUND_OF_NUMBER = Ready(
    select(rounds).where(rounds.c.run_id == bindparam("run_id"), rounds.c.number == bindparam("number"))
)
_SAVE_ROUND = (
    update(rounds)
    .where(rounds.c.run_id == bindparam("of_run"), rounds.c.number == bindparam("of_number"))
    .values(
        status=bindparam("status"),
        deadline_ms=bindparam("deadline_ms"),
        state=bindparam("state"),
        bytes_up=rounds.c.bytes_up + bindparam("more_up"),
    )
    .execution_options(**QUICK)
)
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
    return RunSpec.stored(text)


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
    row = await _RUN_OF_ID.first(connection, run_id=run_id)
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


async def open_run_ids(connection: AsyncConnection, tasks: Collection[str]) -> dict[str, str]:
    """{run_id: task} of the runs of these tasks that have not ended, oldest first."""
    rows = await connection.execute(_OPEN_RUN_IDS, {"tasks": list(tasks)})
    return {row.run_id: row.task for row in rows}


async def all_run_ids(connection: AsyncConnection) -> list[str]:
    return list((await connection.execute(select(runs.c.run_id))).scalars())


async def runs_of_tasks(connection: AsyncConnection, tasks: tuple[str, ...]) -> list[StoredRun]:
    """All runs of these tasks, oldest first."""
    rows = await connection.execute(
        select(runs).where(runs.c.task.in_(tasks)).order_by(runs.c.created_ms, runs.c.run_id)
    )
    return [_run(row) for row in rows]


def _run(row: Row[tuple[object, ...]]) -> StoredRun:
    return run_of(row.run_id, row.spec, row.state, row.created_ms)


def run_of(run_id: str, spec: str, state: str, created_ms: int) -> StoredRun:
    """A run from the columns of its row."""
    return StoredRun(run_id, _spec(spec), _RUN.validate_json(state), created_ms)


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
    row = await _ROUND_OF_NUMBER.first(connection, run_id=run_id, number=number)
    return None if row is None else _round(row)


async def save_round(connection: AsyncConnection, run_id: str, state: Round, more_up: int = 0) -> None:
    """Args: more_up: bytes that were received for it since it was saved last."""
    await connection.execute(
        _SAVE_ROUND,
        {
            "of_run": run_id,
            "of_number": state.number,
            "status": state.status.value,
            "deadline_ms": state.deadline_ms,
            "state": _ROUND.dump_json(state).decode(),
            "more_up": more_up,
        },
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
    return round_of(row.run_id, row.state, row.bytes_up, row.bytes_down)


def round_of(run_id: str, state: str, bytes_up: int, bytes_down: int) -> StoredRound:
    """A round from the columns of its row."""
    return StoredRound(run_id, _ROUND.validate_json(state), bytes_up, bytes_down)
