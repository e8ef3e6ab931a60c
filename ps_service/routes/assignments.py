# SPDX-License-Identifier: Apache-2.0
"""What a worker is asked to do, and its declaration of what it is about to send."""

import hashlib
import json
import re
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request, Response
from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.errors import NotFound
from protocol.messages import (
    Assignment,
    Decline,
    EvaluationAssignment,
    Receipt,
    Role,
    UpdateHeader,
    UploadOffer,
)
from protocol.operator_keys import Scope
from ps_service import bell
from ps_service.admission import check_declaration, check_num_examples, require_open
from ps_service.auth import Caller, require_same
from ps_service.openapi import BEARER, NOTHING_YET
from ps_service.round_runner import same_update
from ps_service.service import Service
from ps_service.standing import noting_refusals
from ps_service.storage import update_records
from ps_service.storage.credential_records import StoredWorker
from ps_service.storage.existing import require_not_in_quarantine
from ps_service.storage.known import Known
from ps_service.storage.situations import Situation, staleness_now, the_situation
from ps_service.storage.update_records import StoredUpload
from ps_service.summaries import assignment_of, bundles_wanted


def router(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["assignments"], dependencies=[BEARER])
    auth, records = service.auth, service.stores.records
    # a dependency, so that a stranger learns nothing of what a body should have been
    ThisWorker = Annotated[StoredWorker, Depends(auth.worker)]  # noqa: N806  # a type

    @routes.get(
        "/workers/{worker_id}/assignment",
        response_model=Assignment | EvaluationAssignment,
        responses={204: NOTHING_YET},
    )
    async def next_assignment(
        request: Request, worker: ThisWorker, worker_id: str, prefer: Annotated[str, Header()] = ""
    ) -> Response:
        """Wait for something to do: `Prefer: wait=SECONDS`."""
        require_same(worker, worker_id)
        asked_s = min(preferred_wait_s(prefer), service.settings.max_wait_s)
        with service.waiting.one(worker_id):
            found = await _wait(service, request, worker, asked_s)
        if found is not None:
            return Response(found.model_dump_json(), media_type="application/json")
        return Response(status_code=204, headers=service.pace.advice())

    @routes.get("/assignments/{assignment_id}")
    async def get_assignment(request: Request, assignment_id: str) -> Assignment:
        caller = await auth.caller(request, Scope.RUNS_READ)
        async with records.read() as connection:
            situation = await own_assignment(connection, caller, assignment_id)
            return await assignment_of(Known(connection), situation.assignment, service.presence.heartbeat_s)

    @routes.post(
        "/assignments/{assignment_id}/update",
        status_code=201,
        response_model=UploadOffer | Receipt,
        responses={200: {"description": "This very update is held already.", "model": Receipt}},
    )
    async def declare(
        worker: ThisWorker, response: Response, assignment_id: str, header: UpdateHeader
    ) -> UploadOffer | Receipt:
        """Say what is about to be sent: everything that can be refused without the body is refused here."""
        require_not_in_quarantine(worker)
        async with (
            noting_refusals(service.note_refusal, worker, assignment_id),
            records.write() as connection,
        ):
            situation = await own_assignment(connection, worker, assignment_id)
            if situation.receipt is not None:
                response.status_code = 200
                return same_update(situation.receipt, header.digest)
            require_open(situation, await staleness_now(connection, situation))
            spec, stored, before = situation.run.spec, situation.assignment, situation.upload_id
            check_declaration(header, spec, bundles_wanted(spec, stored), service.settings.max_body_bytes)
            check_num_examples(header.num_examples, service.settings.max_num_examples)
            upload_id = upload_id_of(assignment_id, header)
            upload = StoredUpload(upload_id, assignment_id, worker.worker_id, header)
            await service.disk.take(connection, stored, upload)
            await update_records.declare_upload(connection, upload, service.clock.now_ms(), before)
        if before not in (None, upload_id):  # at once: one worker's declarations would fill the disk
            await service.uploads.discard(before)
        offset = 0 if before is None else await service.uploads.offset(upload_id)
        put = await service.presigned.upload(situation.run, upload, offset)
        return UploadOffer(upload_url=f"/v1/uploads/{upload_id}", offset=offset, put=put)

    @routes.get("/assignments/{assignment_id}/update")
    async def get_receipt(request: Request, assignment_id: str) -> Receipt:
        """What became of the update."""
        caller = await auth.caller(request, Scope.RUNS_READ)
        async with records.read() as connection:
            situation = await own_assignment(connection, caller, assignment_id)
        if situation.receipt is None:
            raise NotFound(f"no update was received for assignment {assignment_id}")
        return situation.receipt

    @routes.post("/assignments/{assignment_id}/decline", status_code=204)
    async def decline(worker: ThisWorker, assignment_id: str, wanted: Decline) -> None:
        async with records.read() as connection:
            await own_assignment(connection, worker, assignment_id)
        await service.runner.decline(assignment_id, wanted.reason)

    return routes


async def _wait(
    service: Service, request: Request, worker: StoredWorker, asked_s: float
) -> Assignment | EvaluationAssignment | None:
    """Wait for something to do, for as long as was asked or as the server's pace has it."""
    wait_s = service.pace.wait_s(asked_s, service.clock.now_ms() / 1000)
    gone = partial(_disconnected, request) if wait_s else None
    here = service.presence.here(worker.worker_id)
    with service.meters.waiting.track_inprogress(), service.pace.waiting(), here:
        return await service.room.wait(worker.worker_id, _topics(worker), wait_s, gone)


def _topics(worker: StoredWorker) -> list[str]:
    """What rings when there may be something to do for workers like this one."""
    return [bell.VERSIONS] if worker.role is Role.EVALUATOR else [*map(bell.task_topic, worker.tasks)]


async def _disconnected(request: Request) -> None:
    """Ends when the connection of a request, whose body is read, is closed."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def own_assignment(connection: AsyncConnection, caller: Caller, assignment_id: str) -> Situation:
    """Where an assignment stands, if the caller may know of it.

    Raises:
        NotFound: there is none, or it is another worker's: the two look alike.
    """
    situation = await the_situation(connection, assignment_id)
    if isinstance(caller, StoredWorker) and caller.worker_id != situation.assignment.worker_id:
        raise NotFound(f"there is no assignment {assignment_id}")
    return situation


def preferred_wait_s(prefer: str) -> float:
    """Seconds in a `Prefer: wait=…` header (RFC 7240); 0 when it says nothing of waiting."""
    found = re.search(r"(?:^|[,;\s])wait=(\d{1,6})", prefer, re.IGNORECASE)
    return float(found[1]) if found else 0.0


def upload_id_of(assignment_id: str, header: UpdateHeader) -> str:
    """The same declaration for the same assignment is the same upload, however often it is made."""
    declared = json.dumps(header.model_dump(mode="json"), sort_keys=True)
    return f"u-{hashlib.sha256(f'{assignment_id}/{declared}'.encode()).hexdigest()[:32]}"
