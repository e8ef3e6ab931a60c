# SPDX-License-Identifier: Apache-2.0
"""Updates that a worker has put into the object store itself, by the request that its offer named.

A store that compares bytes with their SHA-256 has them under their digest: only their header is looked at
here, and their values before the round is combined. From any other store they are read once, and checked
like a body that comes here.
"""

from functools import partial

from fastapi import APIRouter, Request

from protocol.errors import UploadInterrupted
from protocol.messages import Admitted, Receipt, RunSpec
from ps_service.admission import check_update_message, require_open
from ps_service.aggregation import StoredMessage
from ps_service.assigning import started_from
from ps_service.intake import intake_of_update
from ps_service.openapi import BEARER
from ps_service.round_runner import same_update
from ps_service.routes.uploads import own_upload, unless_closed
from ps_service.service import Service
from ps_service.standing import noting_refusals
from ps_service.storage import version_records
from ps_service.storage.blobs import BlobStore
from ps_service.storage.existing import require_not_in_quarantine
from ps_service.storage.situations import staleness_now, the_situation
from ps_service.storage.update_records import StoredUpload
from ps_service.to_its_end import to_its_end


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
                    situation = await the_situation(connection, upload.assignment_id)
                    run, version = situation.run, situation.assignment.version
                    tensors = await version_records.tensors_of(connection, run.run_id, version)
                    staleness = await staleness_now(connection, situation)
                if situation.receipt is not None:
                    return same_update(situation.receipt, upload.header.digest)
                require_open(situation, staleness)
                look = partial(_look, blobs, run.spec, upload, started_from(tensors))
                async with (
                    noting_refusals(service.note_refusal, worker, upload.assignment_id),
                    unless_closed(service, upload.assignment_id),
                ):
                    admitted = await to_its_end(look)
                return await service.runner.admit(upload, admitted)

    return routes


def _look(blobs: BlobStore, spec: RunSpec, upload: StoredUpload, params: str) -> Admitted:
    """See that the message is there, and is of the kind declared; tell when its values are looked at. Blocks.

    Raises:
        UploadInterrupted: it is not there.
        The errors of an `Intake`.
    """
    header = upload.header
    if blobs.size(header.digest) == header.size_bytes:
        check_update_message(StoredMessage(blobs, header.digest).layout.header, spec, header)
        return Admitted.AT_AGGREGATION
    arrived = None if blobs.addresses is None else blobs.addresses.arrived(upload.upload_id)
    if arrived is None:
        raise UploadInterrupted("the body is not in the object store; send it here, or put it there again")
    try:
        intake = intake_of_update(blobs, spec, header, params, arrived)
        intake.read_again(arrived)
        intake.finish_and_seal()
    except BaseException:
        arrived.discard()
        raise
    return Admitted.ON_ARRIVAL
