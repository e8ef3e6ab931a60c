# SPDX-License-Identifier: Apache-2.0
"""What must be there: whoever asks for a record that is not is told so by name."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.errors import NotFound, WorkerExpired, WorkerQuarantined, WorkerRevoked
from ps_service.storage import Stores, assignment_records, condemned_records, credential_records, run_records
from ps_service.storage.assignment_records import StoredAssignment
from ps_service.storage.credential_records import StoredWorker
from ps_service.storage.in_parts import in_parts
from ps_service.storage.run_records import StoredRound, StoredRun


async def the_run(connection: AsyncConnection, run_id: str) -> StoredRun:
    """Raises: NotFound."""
    run = await run_records.load_run(connection, run_id)
    if run is None:
        raise NotFound(f"there is no run {run_id}")
    return run


async def the_round(connection: AsyncConnection, run_id: str, number: int) -> StoredRound:
    """Raises: NotFound."""
    round_ = await run_records.load_round(connection, run_id, number)
    if round_ is None:
        raise NotFound(f"run {run_id} has no round {number}")
    return round_


async def the_assignment(connection: AsyncConnection, assignment_id: str) -> StoredAssignment:
    """Raises: NotFound."""
    assignment = await assignment_records.load_assignment(connection, assignment_id)
    if assignment is None:
        raise NotFound(f"there is no assignment {assignment_id}")
    return assignment


async def the_worker(connection: AsyncConnection, worker_id: str) -> StoredWorker:
    """Raises: NotFound, WorkerRevoked."""
    worker = await credential_records.worker_by_id(connection, worker_id)
    if worker is None:
        raise NotFound(f"there is no worker {worker_id}")
    return require_not_revoked(worker)


def require_not_revoked(worker: StoredWorker) -> StoredWorker:
    """Raises: WorkerRevoked, WorkerExpired."""
    if worker.revoked_ms is not None:
        raise WorkerRevoked(f"the credential of worker {worker.worker_id} was revoked")
    if worker.expired_ms is not None:
        raise WorkerExpired(f"worker {worker.worker_id} was idle for more than {worker.idle_s} s")
    return worker


def require_not_in_quarantine(worker: StoredWorker) -> StoredWorker:
    """Raises: WorkerQuarantined."""
    if worker.quarantined_ms is not None:
        raise WorkerQuarantined(
            f"{worker.refusals} updates of worker {worker.worker_id} were refused for what is in them"
        )
    return worker


AT_ONCE = 8


@dataclass(frozen=True)
class Seen:
    """What a look into the blob store found, and when it was."""

    digests: frozenset[str]
    last_deletion: int


async def seen_blobs(stores: Stores, digests: Collection[str]) -> Seen:
    """Look for these, before the transaction that is to refer to them: nobody waits for the store in it."""
    async with stores.records.glance() as connection:
        last_deletion = await condemned_records.last_deletion(connection)
    found: set[str] = set()
    for some in in_parts(sorted(digests), AT_ONCE):  # bodies want the threads, too
        sizes = await asyncio.gather(*(asyncio.to_thread(stores.blobs.size, digest) for digest in some))
        found.update(digest for digest, size in zip(some, sizes, strict=True) if size is not None)
    return Seen(frozenset(found), last_deletion)


async def missing_blobs(connection: AsyncConnection, seen: Seen, digests: Collection[str]) -> list[str]:
    """Those that were not seen, or went since. To be asked inside the transaction that refers to them."""
    doomed = await condemned_records.doomed_among(connection, digests, seen.last_deletion)
    return [digest for digest in digests if digest not in seen.digests or digest in doomed]
