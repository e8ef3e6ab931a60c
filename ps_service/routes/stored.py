# SPDX-License-Identifier: Apache-2.0
"""Updates that a worker has put into the object store itself, by the request that its offer named.

A store that compares bytes with their SHA-256 has them under their digest: only their header is looked at
here, and their values before the round is combined. From any other store they are read once, and checked
like a body that comes here.
"""

import asyncio
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request

from protocol.errors import Fault, FedSophiaError, UploadInterrupted
from protocol.messages import Admitted, Receipt, RunSpec, UpdateHeader
from ps_service.admission import check_update_message, require_open
from ps_service.aggregation import stored_layout
from ps_service.intake import intake_of_update
from ps_service.openapi import BEARER
from ps_service.round_runner import same_update
from ps_service.routes.uploads import own_upload, unless_closed, where_it_stands
from ps_service.service import Service
from ps_service.standing import noting_refusals
from ps_service.storage.blobs import BlobStore
from ps_service.storage.existing import require_not_in_quarantine
from ps_service.storage.update_records import StoredUpload
from ps_service.to_its_end import to_its_end

if TYPE_CHECKING:
    from ps_service.storage.addresses import Addresses


def router(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["uploads"], dependencies=[BEARER])
    records, blobs = service.stores.records, service.stores.blobs

    @routes.post("/uploads/{upload_id}/stored")
    async def stored(request: Request, upload_id: str) -> Receipt:
        """The whole body of a declared update is in the object store: its worker has put it there itself."""
        worker = await service.auth.worker(request)
        require_not_in_quarantine(worker)
        async with records.glance() as connection:
            upload = await own_upload(connection, worker, upload_id)
        with service.presence.here(worker.worker_id), service.uploading.one(worker.worker_id):
            async with service.uploads.alone(upload_id, lambda: None, worker.worker_id):
                async with records.read() as connection:
                    situation, staleness, params = await where_it_stands(connection, upload)
                run = situation.run
                if situation.receipt is not None:
                    return same_update(situation.receipt, upload.header.digest)
                require_open(situation, staleness)
                if not run.spec.presigned or blobs.addresses is None:
                    raise UploadInterrupted("this run's updates are sent to the server")
                async with (
                    noting_refusals(service.note_refusal, worker, upload.assignment_id),
                    unless_closed(service, upload.assignment_id),
                ):
                    if await asyncio.to_thread(_is_in_place, blobs, run.spec, upload.header):
                        admitted = Admitted.AT_AGGREGATION
                    else:
                        await _take_in(blobs, blobs.addresses, run.spec, upload, params)
                        admitted = Admitted.ON_ARRIVAL
                return await service.runner.admit(upload, admitted)

    return routes


def _is_in_place(blobs: BlobStore, spec: RunSpec, header: UpdateHeader) -> bool:
    """Whether the message is there under its digest; if so, it is of the kind declared. Blocks.

    Raises:
        MalformedTensorMessage, ShapeMismatch, BundleMismatch, OutsideBound: it is not.
    """
    if blobs.size(header.digest) != header.size_bytes:
        return False
    # not remembered: nobody has looked into it, and it may be made to fill the memory
    check_update_message(stored_layout(blobs, header.digest).header, spec, header)
    return True


async def _take_in(
    blobs: BlobStore, addresses: "Addresses", spec: RunSpec, upload: StoredUpload, params: str
) -> None:
    """Read once what the store has not compared with its digest; it is a message then.

    Raises:
        UploadInterrupted: it is not there.
        The errors of an `Intake`.
    """
    header = upload.header
    arrived = await asyncio.to_thread(addresses.arrived, upload.upload_id, header.size_bytes)
    if arrived is None:
        raise UploadInterrupted("the body is not in the object store; send it here, or put it there again")
    try:
        intake = await asyncio.to_thread(intake_of_update, blobs, spec, header, params, arrived)
        while await asyncio.to_thread(intake.read_some, arrived):
            pass  # in pieces: others want the threads, too
        await to_its_end(intake.finish_and_seal)
    except BaseException as error:
        of_update = isinstance(error, FedSophiaError) and error.fault is Fault.CALLER
        await to_its_end(arrived.discard if of_update else arrived.let_go)
        raise
