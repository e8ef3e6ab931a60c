# SPDX-License-Identifier: Apache-2.0
"""Queries: declared uploads and received updates."""

import json
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Row, bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.messages import Admitted, Outcome, Receipt, UpdateHeader
from ps_service.storage.assignment_records import StoredAssignment, assignment_in
from ps_service.storage.in_parts import in_parts
from ps_service.storage.one_visit import QUICK
from ps_service.storage.ready import Ready
from ps_service.storage.schema import assignments, updates, uploads, workers

# built once: what every update asks
_UPLOAD = Ready(
    select(uploads, assignments.c.worker_id)
    .join(assignments)
    .where(uploads.c.upload_id == bindparam("upload_id"))
)
_RECEIVED = Ready(select(updates).where(updates.c.assignment_id == bindparam("assignment_id")))
_ADD_UPLOAD = insert(uploads).execution_options(**QUICK)
_ADD_UPDATE = insert(updates).execution_options(**QUICK)
_SETTLE = (
    update(assignments)
    .where(assignments.c.assignment_id == bindparam("settles"))
    .values(settled=bindparam("settled"))
    .execution_options(**QUICK)
)


@dataclass(frozen=True)
class StoredUpload:
    """A declared update whose body has not been received in full."""

    upload_id: str
    assignment_id: str
    worker_id: str
    """Who declared it."""
    header: UpdateHeader


@dataclass(frozen=True)
class StoredUpdate:
    """A received update."""

    assignment_id: str
    slot: int
    version: int
    """From which it was made."""
    digest: str
    header: UpdateHeader
    worker_id: str
    admitted: Admitted


@dataclass(frozen=True)
class Invited:
    """A worker's part in a round, and its receipt if there is one."""

    assignment: StoredAssignment
    name: str
    receipt: Receipt | None


# --- uploads -----------------------------------------------------------------------------------


async def declare_upload(
    connection: AsyncConnection, upload: StoredUpload, now_ms: int, before: str | None
) -> None:
    """Record what is about to be sent.

    Args: before: what was declared before for this assignment: its place is taken, unless it is the same.
    """
    if before == upload.upload_id:
        return
    if before is not None:
        await connection.execute(delete(uploads).where(uploads.c.upload_id == before))
    await connection.execute(
        _ADD_UPLOAD,
        {
            "upload_id": upload.upload_id,
            "assignment_id": upload.assignment_id,
            "header": upload.header.model_dump_json(),
            "created_ms": now_ms,
        },
    )


async def load_upload(connection: AsyncConnection, upload_id: str) -> StoredUpload | None:
    row = await _UPLOAD.first(connection, upload_id=upload_id)
    if row is None:
        return None
    header = UpdateHeader.model_validate_json(row.header)
    return StoredUpload(row.upload_id, row.assignment_id, row.worker_id, header)


async def awaited_uploads(connection: AsyncConnection) -> set[str]:
    """The declared uploads whose assignments are not settled."""
    query = select(uploads.c.upload_id).join(assignments).where(assignments.c.settled.is_(False))
    return set((await connection.execute(query)).scalars())


async def bytes_of_run(connection: AsyncConnection, run_id: str, without: str) -> int:
    """What the run's updates take on disk: declared, or held and not yet collected.

    Args: without: an assignment whose declaration does not count.
    """
    declared = (
        select(uploads.c.header)
        .join(assignments)
        .where(
            assignments.c.run_id == run_id,
            assignments.c.settled.is_(False),
            assignments.c.assignment_id != without,
        )
    )
    held = select(updates.c.header).where(updates.c.run_id == run_id, updates.c.collected_ms.is_(None))
    headers = (await connection.execute(declared.union_all(held))).scalars()
    return sum(json.loads(header)["size_bytes"] for header in headers)


# --- updates -----------------------------------------------------------------------------------


async def add_update(
    connection: AsyncConnection,
    assignment: StoredAssignment,
    number: int,
    header: UpdateHeader,
    admitted: Admitted,
    now_ms: int,
) -> None:
    """Record an update that was received for round `number`: this row is what a receipt stands for."""
    await connection.execute(
        _ADD_UPDATE,
        {
            "assignment_id": assignment.assignment_id,
            "run_id": assignment.run_id,
            "round": number,
            "slot": assignment.slot,
            "digest": header.digest,
            "header": header.model_dump_json(),
            "received_ms": now_ms,
            "admitted": admitted.value,
            "outcome": Outcome.PENDING.value,
        },
    )
    await connection.execute(_SETTLE, {"settles": assignment.assignment_id, "settled": True})


async def load_receipt(connection: AsyncConnection, assignment_id: str) -> Receipt | None:
    row = await _RECEIVED.first(connection, assignment_id=assignment_id)
    return None if row is None else receipt_of(row, row.version)


def receipt_of(row: Row[tuple[object, ...]], version: int | None) -> Receipt:
    """Of a row that holds an update's columns. Args: version: in which it was counted."""
    return Receipt(
        assignment_id=row.assignment_id,
        digest=row.digest,
        received_ms=row.received_ms,
        outcome=Outcome(row.outcome),
        admitted=Admitted(row.admitted),
        version=version,
        reason=row.reason,
    )


async def updates_of_round(connection: AsyncConnection, run_id: str, number: int) -> list[StoredUpdate]:
    """The round's updates in the order of slots and turns: that in which they are summed.

    Those that were found not good after they had been admitted are not among them.
    """
    of_round = (updates.c.run_id == run_id) & (updates.c.round == number)
    return await _updates(connection, of_round & (updates.c.outcome != Outcome.NOT_COUNTED.value))


async def has_update_of(connection: AsyncConnection, run_id: str, number: int, slot: int) -> bool:
    """Whether a round has an update of this slot."""
    query = select(updates.c.slot).where(
        updates.c.run_id == run_id, updates.c.round == number, updates.c.slot == slot
    )
    return (await connection.execute(query.limit(1))).first() is not None


async def updates_in_versions(
    connection: AsyncConnection, run_id: str, first: int, last: int
) -> list[StoredUpdate]:
    """The updates that were counted in versions `first` … `last`, in the order of slots and turns."""
    counted = (updates.c.run_id == run_id) & updates.c.version.between(first, last)
    return await _updates(connection, counted)


async def _updates(connection: AsyncConnection, wanted: ColumnElement[bool]) -> list[StoredUpdate]:
    query = (
        select(updates, assignments.c.version.label("made_from"), assignments.c.worker_id)
        .join(assignments, assignments.c.assignment_id == updates.c.assignment_id)
        .where(wanted)
        .order_by(assignments.c.slot, assignments.c.turn)
    )
    return [
        StoredUpdate(
            row.assignment_id,
            row.slot,
            row.made_from,
            row.digest,
            UpdateHeader.model_validate_json(row.header),
            row.worker_id,
            Admitted(row.admitted),
        )
        for row in await connection.execute(query)
    ]


async def refuse_update(connection: AsyncConnection, assignment_id: str, reason: str) -> None:
    """An update that was admitted is found not good."""
    refused = updates.c.assignment_id == assignment_id
    await connection.execute(
        update(updates).where(refused).values(outcome=Outcome.NOT_COUNTED.value, reason=reason)
    )


async def headers_of_rounds(
    connection: AsyncConnection, run_id: str, first: int, last: int
) -> dict[int, list[UpdateHeader]]:
    """{round: headers of its updates, in slot order} of rounds `first` … `last`.

    Those that were found not good after they had been admitted are not among them.
    """
    was_not_good = (updates.c.outcome == Outcome.NOT_COUNTED.value) & (
        updates.c.admitted == Admitted.AT_AGGREGATION.value
    )
    query = (
        select(updates.c.round, updates.c.header)
        .join(assignments, assignments.c.assignment_id == updates.c.assignment_id)
        .where(updates.c.run_id == run_id, updates.c.round.between(first, last))
        .where(~(was_not_good & assignments.c.refused_code.is_not(None)))
    )
    headers: dict[int, list[UpdateHeader]] = {}
    for row in await connection.execute(query.order_by(updates.c.round, updates.c.slot)):
        headers.setdefault(row.round, []).append(UpdateHeader.model_validate_json(row.header))
    return headers


async def conclude_updates(
    connection: AsyncConnection, run_id: str, number: int | None, *, version: int | None, reason: str | None
) -> None:
    """Say what became of the updates of a round, or of all that are left where `number` is None.

    Args:
        version, reason: they were counted in this version, or not counted for this reason.
    """
    outcome = Outcome.NOT_COUNTED if version is None else Outcome.COUNTED
    concluded = (updates.c.run_id == run_id) & (updates.c.outcome == Outcome.PENDING.value)
    if number is not None:
        concluded &= updates.c.round == number
    await connection.execute(
        update(updates).where(concluded).values(outcome=outcome.value, version=version, reason=reason)
    )


async def invited_to(
    connection: AsyncConnection, run_id: str, number: int, after: int, limit: int
) -> list[Invited]:
    """The workers of a round, by slot, beginning behind slot `after`: all turns of at most `limit` slots."""
    of_round = (assignments.c.run_id == run_id) & (assignments.c.round == number)
    slots = select(assignments.c.slot).where(of_round, assignments.c.slot > after).distinct()
    query = (
        select(assignments, workers.c.name)
        .join(workers, workers.c.worker_id == assignments.c.worker_id)
        .where(of_round, assignments.c.slot.in_(slots.order_by(assignments.c.slot).limit(limit)))
        .order_by(assignments.c.slot, assignments.c.turn)
    )
    rows = (await connection.execute(query)).all()
    receipts = {
        row.assignment_id: receipt_of(row, row.version)
        for some in in_parts([row.assignment_id for row in rows])
        for row in await connection.execute(select(updates).where(updates.c.assignment_id.in_(some)))
    }
    return [Invited(assignment_in(row), row.name, receipts.get(row.assignment_id)) for row in rows]


async def versions_in_use(connection: AsyncConnection, run_id: str) -> set[int]:
    """The versions from which updates are being made, or have been and are not yet concluded."""
    in_hand = select(assignments.c.version).where(
        assignments.c.run_id == run_id, assignments.c.settled.is_(False)
    )
    pending = (
        select(assignments.c.version)
        .join(updates, updates.c.assignment_id == assignments.c.assignment_id)
        .where(updates.c.run_id == run_id, updates.c.outcome == Outcome.PENDING.value)
    )
    return set((await connection.execute(in_hand.union(pending))).scalars())
