# SPDX-License-Identifier: Apache-2.0
"""Looks into updates that went to the store past the server, before they are combined.

What is checked is what is checked of others as their bytes pass, by the same code. An update that is found
not good is counted in no version, its worker is told why by its receipt, and its round goes on with the
others if they are a quorum. To be repeated after a crash: the same bytes are found good or not good again.
"""

import asyncio
from collections.abc import Mapping, Sequence

from protocol.errors import Fault, FedSophiaError
from protocol.messages import Admitted, RoundStatus, RunSpec
from ps_service import round_machine
from ps_service.assigning import started_from
from ps_service.in_order import in_order, useful_threads
from ps_service.intake import intake_of_update
from ps_service.round_runner import RoundRunner
from ps_service.standing import NoteRefusal
from ps_service.storage import credential_records, update_records, version_records
from ps_service.storage.blobs import BlobStore
from ps_service.storage.effect_records import StoredEffect
from ps_service.storage.existing import the_round, the_run
from ps_service.storage.update_records import StoredUpdate
from ps_service.transitions import round_event

NotGood = tuple[StoredUpdate, FedSophiaError]
"""An update, and what is wrong with it."""


async def refuse_what_is_not_good(runner: RoundRunner, effect: StoredEffect, note: NoteRefusal) -> None:
    """Leave out of the effect's round what should not have been admitted; without a quorum it is abandoned.

    Raises:
        StorageCorrupt, StorageUnavailable: an update cannot be read.
    """
    async with runner.stores.records.read() as connection:
        run = await the_run(connection, effect.run_id)
        stored = await the_round(connection, effect.run_id, effect.round)
        if stored.state.status is not RoundStatus.AGGREGATING:
            return
        updates = await update_records.updates_of_round(connection, run.run_id, effect.round)
        unseen = [update for update in updates if update.admitted is Admitted.AT_AGGREGATION]
        params = {
            version: started_from(await version_records.tensors_of(connection, run.run_id, version))
            for version in {update.version for update in unseen}
        }
        senders = {update.worker_id for update in unseen}
        workers = await credential_records.workers_by_id(connection, senders)
    if not unseen:
        return
    refused = await asyncio.to_thread(not_good, runner.stores.blobs, run.spec, unseen, params)
    if refused:
        await _refuse(runner, effect, refused)
    good = {update.worker_id for update in unseen} - {update.worker_id for update, _ in refused}
    if any(workers[worker_id].refusals for worker_id in good):
        async with runner.transition() as transition:
            found = await credential_records.workers_by_id(transition.connection, good)
            await credential_records.end_refusals(transition.connection, found.values())
    for update, error in refused:  # a crash before this costs the operator a note, and no more
        await note(update.worker_id, update.assignment_id, error)


def not_good(
    blobs: BlobStore, spec: RunSpec, updates: Sequence[StoredUpdate], params: Mapping[int, str]
) -> list[NotGood]:
    """Those that no honest worker sends, in their order. Blocks.

    Args: params: {version: digest of the parameters that were given of it}.
    """
    found: list[NotGood] = []

    def look(update: StoredUpdate) -> tuple[StoredUpdate, FedSophiaError | None]:
        return update, _fault_of(blobs, spec, update, params[update.version])

    def take(seen: tuple[StoredUpdate, FedSophiaError | None]) -> None:
        update, error = seen
        if error is not None:
            found.append((update, error))

    in_order(updates, look, take, useful_threads())
    return found


def _fault_of(blobs: BlobStore, spec: RunSpec, update: StoredUpdate, params: str) -> FedSophiaError | None:
    message = _Sealed(blobs, update.digest, update.header.size_bytes)
    intake = intake_of_update(blobs, spec, update.header, params, message)
    try:
        intake.read_again(message)
        intake.finish()
    except FedSophiaError as error:
        if error.fault is not Fault.CALLER:
            raise
        return error
    return None


async def _refuse(runner: RoundRunner, effect: StoredEffect, refused: Sequence[NotGood]) -> None:
    async with runner.transition() as transition:
        connection = transition.connection
        run = await the_run(connection, effect.run_id)
        stored = await the_round(connection, effect.run_id, effect.round)
        before = await update_records.updates_of_round(connection, run.run_id, effect.round)
        awaited = {update.assignment_id for update in before}  # another server may have found them meanwhile
        gone = {u.assignment_id: error for u, error in refused if u.assignment_id in awaited}
        if stored.state.status is not RoundStatus.AGGREGATING or not gone:
            return
        for assignment_id, error in gone.items():
            await update_records.refuse_update(connection, assignment_id, f"{error.code}: {error.detail}")
        base_version, buffered = stored.state.base_version, stored.state.buffered
        left = {update.slot for update in before if update.assignment_id not in gone}
        event = round_machine.UpdatesRefused(
            transition.now_ms,
            len(gone),
            tuple(base_version - u.version for u in before if buffered and u.assignment_id in gone),
            len(left) if buffered else 0,
        )
        await round_event(transition, run, stored, event)


class _Sealed:
    """A message of the store, to be read like one that has come; nothing is written."""

    def __init__(self, blobs: BlobStore, digest: str, size_bytes: int) -> None:
        self._blobs = blobs
        self._digest = digest
        self._size_bytes = size_bytes

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        view = memoryview(buffer)[: self._size_bytes - offset]
        if view:
            self._blobs.read_into(self._digest, offset, view)
        return len(view)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        raise AssertionError("it is read only")

    def seal(self, digest: str) -> None:
        raise AssertionError("it is sealed")

    def discard(self) -> None:
        raise AssertionError("it is sealed")
