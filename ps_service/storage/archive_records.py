# SPDX-License-Identifier: Apache-2.0
"""Queries: the history of a run that another server held."""

import asyncio
import json
from collections.abc import Sequence

from pydantic import TypeAdapter
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.run_archive import ArchivedRound, RunArchive
from ps_service.round_machine import Round
from ps_service.storage.schema import rounds, state_tensors, versions

Row = dict[str, object]
_ROUND = TypeAdapter(Round)


async def add_history(
    connection: AsyncConnection, run_id: str, archive: RunArchive, kept: Sequence[int], now_ms: int
) -> None:
    """Store the rounds and versions of a run.

    Args:
        kept: the versions whose tensors are stored here, ascending; those of others are not kept.
    """
    round_rows, version_rows = await asyncio.to_thread(_rows, run_id, archive, set(kept), now_ms)
    if round_rows:
        await connection.execute(insert(rounds), round_rows)
    await connection.execute(insert(versions), version_rows)
    digest_rows = [{"run_id": run_id, "digest": digest} for digest in archive.digests_of(kept)]
    await connection.execute(insert(state_tensors), digest_rows)


async def archived_metrics(
    connection: AsyncConnection, run_id: str, first: int, last: int
) -> dict[int, dict[str, float]]:
    """{round: metrics} of those rounds `first` … `last` that another server held."""
    query = select(rounds.c.number, rounds.c.metrics).where(
        rounds.c.run_id == run_id, rounds.c.number.between(first, last), rounds.c.metrics.is_not(None)
    )
    return {row.number: json.loads(row.metrics) for row in await connection.execute(query)}


async def archived_metrics_of_kept(connection: AsyncConnection, run_id: str) -> dict[int, dict[str, float]]:
    """{version: metrics} of the versions that another server measured and whose tensors are kept."""
    query = (
        select(versions.c.version, rounds.c.metrics)
        .join(rounds, (rounds.c.run_id == versions.c.run_id) & (rounds.c.number == versions.c.round))
        .where(versions.c.run_id == run_id, versions.c.collected_ms.is_(None), rounds.c.metrics.is_not(None))
    )
    return {row.version: json.loads(row.metrics) for row in await connection.execute(query)}


def _rows(run_id: str, archive: RunArchive, kept: set[int], now_ms: int) -> tuple[list[Row], list[Row]]:
    made_in = {round_.version: round_.round for round_ in archive.rounds}
    version_rows: list[Row] = [
        {
            "run_id": run_id,
            "version": version.version,
            "round": made_in.get(version.version),
            "tensors": json.dumps(version.tensors),
            "created_ms": version.created_ms,
            "collected_ms": None if version.version in kept else now_ms,
        }
        for version in archive.versions
    ]
    return [_round_row(run_id, round_) for round_ in archive.rounds], version_rows


def _round_row(run_id: str, round_: ArchivedRound) -> Row:
    state = Round(
        number=round_.round,
        base_version=round_.base_version,
        invited=round_.invited,
        target=round_.invited,  # what it aimed at no longer matters to a round that has ended
        quorum=round_.admitted,
        opened_ms=round_.opened_ms,
        deadline_ms=round_.deadline_ms,
        now_ms=round_.ended_ms,
        status=round_.status,
        admitted=round_.admitted,
        declined=round_.declined,
        last_admitted_ms=round_.last_admitted_ms,
        lost=round_.lost,
        ended_ms=round_.ended_ms,
        reason=round_.reason,
        staleness=round_.staleness,
    )
    return {
        "run_id": run_id,
        "number": round_.round,
        "status": round_.status.value,
        "deadline_ms": round_.deadline_ms,
        "state": _ROUND.dump_json(state).decode(),
        "bytes_up": round_.bytes_up,
        "bytes_down": round_.bytes_down,
        "metrics": json.dumps(round_.metrics) if round_.metrics else None,
    }
