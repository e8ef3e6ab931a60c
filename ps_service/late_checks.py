# SPDX-License-Identifier: Apache-2.0
"""Looks into updates that went to the store past the server, before they are combined.

What is checked is what is checked of others as their bytes pass, by the same code. An update that is found
not good is counted in no version, its worker is told why by its receipt, and its round goes on with the
others if they are a quorum. To be repeated after a crash: the same bytes are found good or not good again.
"""

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence

from protocol.errors import Fault, FedSophiaError, StorageCorrupt
from protocol.messages import Admitted, RoundStatus, RunSpec
from ps_service import round_machine
from ps_service.assigning import started_from
from ps_service.in_order import in_order, useful_threads
from ps_service.intake import READ_BYTES, intake_of_update
from ps_service.quarantine import count_refusal
from ps_service.round_runner import RoundRunner
from ps_service.storage import assignment_records, update_records, version_records
from ps_service.storage.blobs import BlobStore
from ps_service.storage.effect_records import StoredEffect
from ps_service.storage.existing import the_round, the_run
from ps_service.storage.update_records import StoredUpdate
from ps_service.transitions import round_event

NotGood = tuple[StoredUpdate, FedSophiaError]
"""An update, and what is wrong with it."""
Quarantined = Callable[[str, FedSophiaError], None]
"""(worker, why its last update was not taken)."""


async def refuse_what_is_not_good(
    runner: RoundRunner, effect: StoredEffect, quarantine_after: int, told: Quarantined
) -> set[str]:
    """Leave out of the effect's round what should not have been admitted; without a quorum it is abandoned.

    Args: told: of each worker that is put into quarantine for it.

    Returns:
        The workers whose updates were found good only now.

    Raises:
        StorageCorrupt, StorageUnavailable: an update cannot be read.
    """
    async with runner.stores.records.read() as connection:
        run = await the_run(connection, effect.run_id)
        stored = await the_round(connection, effect.run_id, effect.round)
        if stored.state.status is not RoundStatus.AGGREGATING:
            return set()
        updates = await update_records.updates_of_round(connection, run.run_id, effect.round)
        unseen = [update for update in updates if update.admitted is Admitted.AT_AGGREGATION]
        params = {
            version: started_from(await version_records.tensors_of(connection, run.run_id, version))
            for version in {update.version for update in unseen}
        }
    if not unseen:
        return set()
    # an attempt before this may have failed later
    known = runner.found_good.setdefault(effect.effect_id, set())
    new = [update for update in unseen if update.assignment_id not in known]
    refused = await asyncio.to_thread(not_good, runner.stores.blobs, run.spec, new, params)
    known.update({u.assignment_id for u in new} - {u.assignment_id for u, _ in refused})
    if refused:
        for worker_id, error in await _refuse(runner, effect, refused, quarantine_after):
            told(worker_id, error)
    return {update.worker_id for update in unseen} - {update.worker_id for update, _ in refused}


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
    """What is wrong with an update; a read that went wrong is none of it.

    Raises: StorageCorrupt: the parameters that it was made from do not have their digest any more.
    """
    message = _Sealed(blobs, update.digest, update.header.size_bytes)
    fault = None
    for _ in range(2):
        intake = intake_of_update(blobs, spec, update.header, params, message)
        try:
            intake.read_again(message)
            intake.finish()
        except FedSophiaError as error:
            if error.fault is not Fault.CALLER:
                raise
            fault = error
        else:
            return None
        for digest in (update.digest, params):  # what was read of them may be what is wrong
            blobs.forget(digest)
    if not _is_itself(_Sealed(blobs, params, blobs.size(params) or 0)):
        raise StorageCorrupt(f"tensor message {params} is read with another digest")
    if not _is_itself(message):  # the store has compared it, and gives something else now
        return StorageCorrupt(f"tensor message {update.digest} is read with another digest")
    return fault


def _is_itself(message: "_Sealed") -> bool:
    """Whether the bytes still have their digest."""
    sha256, offset = hashlib.sha256(), 0
    buffer = memoryview(bytearray(READ_BYTES))
    while count := message.read_into(offset, buffer):
        sha256.update(buffer[:count])
        offset += count
    return sha256.hexdigest() == message.digest


async def _refuse(
    runner: RoundRunner, effect: StoredEffect, refused: Sequence[NotGood], quarantine_after: int
) -> list[tuple[str, FedSophiaError]]:
    """Write it down; give the workers that are in quarantine for it, and why."""
    async with runner.transition() as transition:
        connection = transition.connection
        if not await runner.leases.held(connection, effect.effect_id):
            return []
        run = await the_run(connection, effect.run_id)
        stored = await the_round(connection, effect.run_id, effect.round)
        before = await update_records.updates_of_round(connection, run.run_id, effect.round)
        awaited = {update.assignment_id for update in before}
        gone = {u.assignment_id: (u, error) for u, error in refused if u.assignment_id in awaited}
        if stored.state.status is not RoundStatus.AGGREGATING or not gone:
            return []
        quarantined = []
        for update, error in gone.values():
            await update_records.refuse_update(
                connection, update.assignment_id, f"{error.code}: {error.detail}"
            )
            await assignment_records.note_refusal(connection, update.assignment_id, error.code)
            if error.fault is not Fault.CALLER:
                continue
            # whatever is wrong with it: the store has compared the bytes, so they came to no harm on the way
            if await count_refusal(transition, update.worker_id, error, quarantine_after):
                quarantined.append((update.worker_id, error))
        base_version, buffered = stored.state.base_version, stored.state.buffered
        left = {update.slot for update in before if update.assignment_id not in gone}
        event = round_machine.UpdatesRefused(
            transition.now_ms,
            len(gone),
            tuple(base_version - u.version for u in before if buffered and u.assignment_id in gone),
            len(left) if buffered else 0,
        )
        await round_event(transition, run, await the_round(connection, run.run_id, effect.round), event)
    return quarantined


class _Sealed:
    """A message of the store, to be read like one that has come; nothing is written."""

    def __init__(self, blobs: BlobStore, digest: str, size_bytes: int) -> None:
        self._blobs = blobs
        self.digest = digest
        self._size_bytes = size_bytes

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        view = memoryview(buffer)[: self._size_bytes - offset]
        if view:
            self._blobs.read_into(self.digest, offset, view)
        return len(view)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        raise AssertionError("it is read only")

    def seal(self, digest: str) -> None:
        raise AssertionError("it is sealed")

    def discard(self) -> None:
        raise AssertionError("it is sealed")
