# SPDX-License-Identifier: Apache-2.0
"""The bodies of declared updates: checked as their bytes pass, sealed, then acknowledged.

A receipt means, in this order: file fsync → rename → directory fsync → commit → answer.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from fastapi import APIRouter, Request, Response
from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.algorithms import algorithm_named
from protocol.errors import NotFound, StorageCorrupt, UploadInProgress
from protocol.messages import Receipt
from ps_service.admission import check_update_message, require_open
from ps_service.aggregation import StoredMessage
from ps_service.auth import Caller
from ps_service.intake import Intake, UpdateCheck
from ps_service.openapi import BEARER, TENSORS_SENT
from ps_service.round_runner import same_update
from ps_service.routes.assignments import own_assignment
from ps_service.routes.bodies import DRAIN_BYTES, Body, require_tensor_message
from ps_service.service import Service
from ps_service.standing import noting_refusals
from ps_service.storage import update_records, version_records
from ps_service.storage.existing import the_assignment, the_round, the_run
from ps_service.storage.run_records import StoredRun
from ps_service.storage.update_records import StoredUpload


def router(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["uploads"], dependencies=[BEARER])
    auth, records = service.auth, service.stores.records

    @routes.head("/uploads/{upload_id}", status_code=204)
    async def offset(request: Request, upload_id: str) -> Response:
        """How many bytes of this upload are held."""
        worker = await auth.worker(request)
        async with records.read() as connection:
            upload = await own_upload(connection, worker, upload_id)
            held = await update_records.load_receipt(connection, upload.assignment_id)
        received = held is not None and held.digest == upload.header.digest
        return Response(
            status_code=204,
            headers={
                "Upload-Offset": str(upload.header.size_bytes if received else 0),
                "Upload-Length": str(upload.header.size_bytes),
                "Cache-Control": "no-store",
            },
        )

    @routes.put("/uploads/{upload_id}", openapi_extra=TENSORS_SENT)
    async def receive(request: Request, upload_id: str) -> Receipt:
        """Take the whole body of a declared update."""
        body = Body(request, service.settings.body_timeout_s, service.meters)
        try:
            worker = await auth.worker(request)
            body.sender_is_known()
            async with records.read() as connection:
                upload = await own_upload(connection, worker, upload_id)
                held = await update_records.load_receipt(connection, upload.assignment_id)
                stored, run, round_ = await own_assignment(connection, worker, upload.assignment_id)
                tensors = await version_records.tensors_of(connection, run.run_id, round_.state.base_version)
            body.sender_is_known(max(DRAIN_BYTES, upload.header.size_bytes))
            if held is not None:
                await body.drain()
                return same_update(held, upload.header.digest)
            require_tensor_message(request, upload.header.size_bytes)
            require_open(run.state.status, round_.state, declined=stored.declined_reason is not None)
            with _only_one(service, upload_id), service.presence.here(worker.worker_id):
                async with (
                    noting_refusals(records, worker, upload.assignment_id),
                    _unless_closed(service, upload.assignment_id),
                ):
                    await _receive(service, body, run, upload, tensors["params"])
                return await service.runner.admit(upload)
        except Exception:  # whatever it is: who is still sending hears of nothing
            await body.drain()
            raise

    return routes


async def _receive(service: Service, body: Body, run: StoredRun, upload: StoredUpload, params: str) -> None:
    """Take the body into the blob store, or leave no trace of it."""
    header, spec = upload.header, run.spec
    hyperparameters = algorithm_named(spec.algorithm).parse(spec.hyperparameters)
    bound = hyperparameters.bound(header.local_steps, spec.local_steps)
    blobs = service.stores.blobs
    intake = Intake(
        blobs,
        header.digest,
        header.size_bytes,
        check_header=lambda message: check_update_message(message, spec, header),
        check_values=UpdateCheck(await asyncio.to_thread(StoredMessage, blobs, params), bound),
    )
    try:
        await body.into(intake)
        await asyncio.to_thread(intake.seal)
    finally:
        await asyncio.to_thread(intake.discard)


@asynccontextmanager
async def _unless_closed(service: Service, assignment_id: str) -> AsyncIterator[None]:
    """A round that closes while a body travels may have its tensors collected: the sender is told why."""
    try:
        yield
    except StorageCorrupt:
        async with service.stores.records.read() as connection:
            stored = await the_assignment(connection, assignment_id)
            run = await the_run(connection, stored.run_id)
            round_ = await the_round(connection, stored.run_id, stored.round)
        require_open(run.state.status, round_.state, declined=False)
        raise


@contextmanager
def _only_one(service: Service, upload_id: str) -> Iterator[None]:
    if upload_id in service.uploads_in_progress:
        raise UploadInProgress("another request is sending this body; ask for the receipt, or try again")
    service.uploads_in_progress.add(upload_id)
    try:
        yield
    finally:
        service.uploads_in_progress.discard(upload_id)


async def own_upload(connection: AsyncConnection, caller: Caller, upload_id: str) -> StoredUpload:
    """A declared upload, if the caller is the worker who declared it.

    Raises:
        NotFound: there is none, or it is another worker's.
    """
    upload = await update_records.load_upload(connection, upload_id)
    if upload is None:
        raise NotFound(f"there is no upload {upload_id}; declare the update first")
    await own_assignment(connection, caller, upload.assignment_id)
    return upload
