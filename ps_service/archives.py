# SPDX-License-Identifier: Apache-2.0
"""Makes a run of an archive: all of it in one transaction, or nothing."""

import asyncio
import secrets
from collections.abc import Mapping

from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.algorithms import name_in_message
from protocol.errors import StorageCorrupt, UnknownTensors
from protocol.messages import RunStatus, RunSummary
from protocol.run_archive import RunArchive
from ps_service.admission import check_combiners, check_state_message
from ps_service.aggregation import StoredMessage
from ps_service.bell import DEADLINES, HOUSEKEEPING, VERSIONS, task_topic
from ps_service.round_runner import RoundRunner
from ps_service.run_machine import REMEMBERED_ROUNDS, Run
from ps_service.storage import archive_records, run_records
from ps_service.storage.blobs import BlobStore
from ps_service.storage.existing import Seen, missing_blobs, seen_blobs
from ps_service.storage.run_records import StoredRun
from ps_service.summaries import run_summary
from ps_service.transitions import announce_run


async def import_run(runner: RoundRunner, archive: RunArchive) -> RunSummary:
    """Store a run, its rounds, versions and metrics under a new id; members are not imported.

    Raises:
        UnknownTensors: those of a version that is included, or of the last one, are not stored here.
        MalformedTensorMessage, ShapeMismatch: a tensor message is none of the spec's model.
        InvalidMessage: the spec names a combiner that there is not.
    """
    check_combiners(archive.spec)
    stores = runner.stores
    kept = tuple(sorted({*archive.included, archive.version}))
    digests = archive.digests_of(kept)
    seen = await seen_blobs(stores, digests)
    async with stores.records.read() as connection:
        await _require_stored(connection, seen, digests)
    try:
        await asyncio.to_thread(_check_headers, stores.blobs, archive, kept)
    except StorageCorrupt:  # collected meanwhile: the sender may send it again
        seen = await seen_blobs(stores, digests)
        async with stores.records.read() as connection:
            await _require_stored(connection, seen, digests)
        raise
    seen = await seen_blobs(stores, digests)  # it took its time
    async with runner.transition() as transition:
        # again: what no row names may have been collected since
        await _require_stored(transition.connection, seen, digests)
        run = StoredRun(f"run-{secrets.token_hex(6)}", archive.spec, state_after(archive), archive.created_ms)
        await run_records.add_run(transition.connection, run)
        await archive_records.add_history(transition.connection, run.run_id, archive, kept, transition.now_ms)
        transition.untidy.add(run.run_id)
        transition.topics |= {task_topic(archive.spec.task), DEADLINES, VERSIONS, HOUSEKEEPING}
        await announce_run(transition, run.run_id)
        return await run_summary(transition.connection, run)


def state_after(archive: RunArchive) -> Run:
    """Where a run stands after its archived rounds; one that had not ended is paused. PURE."""
    committed = [round_ for round_ in archive.rounds if round_.version is not None]
    lengths_ms = [max((r.last_admitted_ms or r.ended_ms) - r.opened_ms, 0) for r in committed]
    return Run(
        status=archive.status if archive.status.ended else RunStatus.PAUSED,
        round=len(archive.rounds),
        version=archive.version,
        abandoned_in_a_row=archive.abandoned_in_a_row,
        round_lengths_ms=tuple(lengths_ms[-REMEMBERED_ROUNDS:]),
        started_ms=archive.rounds[0].opened_ms if archive.rounds else None,
        reason=archive.reason,
        ended_ms=archive.ended_ms,
    )


async def _require_stored(connection: AsyncConnection, seen: Seen, digests: Mapping[str, int]) -> None:
    """Args: digests: {digest: a version that has it}."""
    for digest in await missing_blobs(connection, seen, digests):
        raise UnknownTensors(f"version {digests[digest]}: nothing is stored under {digest}")


def _check_headers(blobs: BlobStore, archive: RunArchive, kept: tuple[int, ...]) -> None:
    checked = set()
    for version in kept:
        for bundle, digest in archive.versions[version].tensors.items():
            if (bundle, digest) not in checked:
                header = StoredMessage(blobs, digest).layout.header
                check_state_message(header, archive.spec, name_in_message(bundle))
                checked.add((bundle, digest))
