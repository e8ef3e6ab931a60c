# SPDX-License-Identifier: Apache-2.0
"""The bodies of declared updates: checked as their bytes pass, sealed, then acknowledged.

A receipt means, in this order: file fsync → rename → directory fsync → commit → answer.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from fastapi import APIRouter, Request, Response
from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.errors import NotFound, StorageCorrupt, UploadInterrupted, UploadOffsetMismatch
from protocol.messages import Receipt
from ps_service.admission import require_open
from ps_service.assigning import started_from
from ps_service.auth import Caller
from ps_service.intake import Intake, intake_of_update
from ps_service.openapi import BEARER, PART_SENT, TENSORS_SENT
from ps_service.round_runner import same_update
from ps_service.routes.bodies import DRAIN_BYTES, Body, require_announced, upload_offset
from ps_service.service import Service
from ps_service.standing import noting_refusals
from ps_service.storage import update_records, version_records
from ps_service.storage.blobs import Part
from ps_service.storage.credential_records import StoredWorker
from ps_service.storage.existing import require_not_in_quarantine, the_worker
from ps_service.storage.situations import Situation, staleness_now, the_situation
from ps_service.storage.update_records import StoredUpload
from ps_service.to_its_end import to_its_end
from ps_service.uploads import Uploads


def router(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["uploads"], dependencies=[BEARER])
    auth, records = service.auth, service.stores.records

    @routes.head("/uploads/{upload_id}", status_code=204)
    async def offset(request: Request, upload_id: str) -> Response:
        """How many bytes of this upload are held. A request that is still sending it gives way."""
        worker = await auth.worker(request)
        async with records.read() as connection:
            await own_upload(connection, worker, upload_id)
        offset = await service.uploads.offset(upload_id)
        async with records.read() as connection:
            upload = await own_upload(connection, worker, upload_id)
            held = await update_records.load_receipt(connection, upload.assignment_id)
            received = held is not None and held.digest == upload.header.digest
            size_bytes = upload.header.size_bytes
        return Response(
            status_code=204,
            headers={
                "Upload-Offset": str(size_bytes if received else offset),
                "Upload-Length": str(size_bytes),
                "Upload-Complete": "?1" if received else "?0",
                "Cache-Control": "no-store",
            },
        )

    @routes.put("/uploads/{upload_id}", openapi_extra=TENSORS_SENT)
    async def whole(request: Request, upload_id: str) -> Receipt:
        """Take the whole body of a declared update; what came of it before is thrown away."""
        answer = await _take(service, request, upload_id, is_part=False)
        assert isinstance(answer, Receipt)  # a whole body that is none is refused
        return answer

    @routes.patch(
        "/uploads/{upload_id}",
        response_model=Receipt,
        responses={204: {"description": "This part is held, and more is to come."}},
        openapi_extra=PART_SENT,
    )
    async def part(request: Request, upload_id: str) -> Receipt | Response:
        """Take a part of the body of a declared update, from `Upload-Offset` on. The last completes it."""
        answer = await _take(service, request, upload_id, is_part=True)
        if isinstance(answer, Receipt):
            return answer
        return Response(status_code=204, headers={"Upload-Offset": str(answer), "Upload-Complete": "?0"})

    return routes


async def _take(service: Service, request: Request, upload_id: str, *, is_part: bool) -> Receipt | int:
    """Take the body of one request; give the receipt, or how many bytes are held while more are to come."""
    body = Body(request, service)
    records = service.stores.records
    try:
        worker = await service.auth.worker(request)
        body.sender_is_known()
        require_not_in_quarantine(worker)
        async with records.glance() as connection:
            upload = await own_upload(connection, worker, upload_id)
        body.sender_is_known(max(DRAIN_BYTES, upload.header.size_bytes))
        with service.presence.here(worker.worker_id):
            async with service.uploads.alone(upload_id, body.give_way, worker.worker_id):
                async with records.read() as connection:
                    situation, staleness, params = await where_it_stands(connection, upload)
                if situation.receipt is not None:
                    await body.drain()
                    return same_update(situation.receipt, upload.header.digest)
                first = upload_offset(request) if is_part else None
                require_announced(request, upload.header.size_bytes, first)
                require_open(situation, staleness)
                begin = partial(
                    intake_of_update, service.stores.blobs, situation.run.spec, upload.header, params
                )
                with service.uploading.one(worker.worker_id):
                    async with (
                        _unless_revoked(service, worker.worker_id),
                        noting_refusals(service.note_refusal, worker, upload.assignment_id),
                        unless_closed(service, upload.assignment_id),
                    ):
                        received_bytes = await _receive(service.uploads, body, upload, begin, first)
                if received_bytes < upload.header.size_bytes:
                    return received_bytes
                return await service.runner.admit(upload)
    except Exception:  # whatever it is: who is still sending hears of nothing
        await body.drain()
        raise


async def _receive(
    uploads: Uploads, body: Body, upload: StoredUpload, begin: Callable[[Part], Intake], first: int | None
) -> int:
    """Take what comes; give how many bytes are held. Once they all are, they are in the blob store."""
    incoming = await uploads.take_up(upload.upload_id, begin, afresh=first is None)
    if first is not None and first != incoming.received_bytes:
        await uploads.pause(upload.upload_id, incoming)
        raise UploadOffsetMismatch(f"Upload-Offset: {first}; {incoming.received_bytes} bytes are held")
    intake = incoming.intake
    try:
        await body.into(intake)
        whole = first is None or intake.received_bytes == upload.header.size_bytes
        if whole:
            await to_its_end(intake.finish_and_seal)
    except (UploadInterrupted, asyncio.CancelledError):
        if not intake.sealed:
            await uploads.pause(upload.upload_id, incoming)
        raise
    except Exception:
        await asyncio.to_thread(intake.discard)
        raise
    if not whole:
        await uploads.pause(upload.upload_id, incoming)
    return intake.received_bytes


@asynccontextmanager
async def _unless_revoked(service: Service, worker_id: str) -> AsyncIterator[None]:
    """Who is cut off because they may send no more is told so."""
    try:
        yield
    except UploadInterrupted:
        async with service.stores.records.glance() as connection:
            await the_worker(connection, worker_id)
        raise


@asynccontextmanager
async def unless_closed(service: Service, assignment_id: str) -> AsyncIterator[None]:
    """A round that closes while a body travels may have its tensors collected: the sender is told why."""
    try:
        yield
    except StorageCorrupt:
        async with service.stores.records.read() as connection:
            situation = await the_situation(connection, assignment_id)
            staleness = await staleness_now(connection, situation)
        require_open(situation, staleness)
        raise


async def where_it_stands(connection: AsyncConnection, upload: StoredUpload) -> tuple[Situation, int, str]:
    """Of a declared update: its situation, how stale it is now, and the digest of what it was made from."""
    situation = await the_situation(connection, upload.assignment_id)
    run_id, version = situation.run.run_id, situation.assignment.version
    tensors = await version_records.tensors_of(connection, run_id, version)
    return situation, await staleness_now(connection, situation), started_from(tensors)


async def own_upload(connection: AsyncConnection, caller: Caller, upload_id: str) -> StoredUpload:
    """A declared upload, if the caller is the worker who declared it.

    Raises:
        NotFound: there is none, or it is another worker's.
    """
    upload = await update_records.load_upload(connection, upload_id)
    if upload is None or (isinstance(caller, StoredWorker) and caller.worker_id != upload.worker_id):
        raise NotFound(f"there is no upload {upload_id}; declare the update first")
    return upload
