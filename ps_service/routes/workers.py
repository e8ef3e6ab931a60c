# SPDX-License-Identifier: Apache-2.0
"""Enrolment, access tokens, heartbeats; and what an operator says of workers."""

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from protocol.errors import NotFound
from protocol.messages import (
    AccessToken,
    AccessTokenRequest,
    Enrolled,
    Enrolment,
    Heartbeat,
    KeyRotation,
    WorkerSummary,
)
from protocol.operator_keys import Scope
from ps_service import quarantine
from ps_service.auth import bearer, require_bearer, require_same
from ps_service.openapi import BEARER
from ps_service.routes.pages import Limit
from ps_service.service import Service
from ps_service.storage import credential_records
from ps_service.storage.credential_records import StoredWorker
from ps_service.storage.existing import the_worker
from ps_service.storage.run_records import MOST_ROWS


def router(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["workers"])
    auth, enrolling, records = service.auth, service.enrolling, service.stores.records
    # as dependencies, so that a stranger learns nothing of what a body should have been
    readers = [BEARER, Depends(auth.operator(Scope.WORKERS_READ))]
    writers = [BEARER, Depends(auth.operator(Scope.WORKERS_WRITE))]
    ThisWorker = Annotated[StoredWorker, Depends(auth.worker)]  # noqa: N806  # a type

    @routes.post(
        "/workers",
        status_code=201,
        dependencies=[BEARER, Depends(require_bearer)],
        responses={200: {"description": "This device is enrolled already.", "model": Enrolled}},
    )
    async def enrol(request: Request, response: Response, enrolment: Enrolment) -> Enrolled:
        """Enrol a device by a join token; again with the same key gives the same worker."""
        request.state.about = {"name": enrolment.name}
        enrolled, is_new = await enrolling.enrol(bearer(request), enrolment)
        request.state.about["worker_id"] = enrolled.worker_id
        service.room.dismiss(enrolled.worker_id)
        response.status_code = 201 if is_new else 200
        return enrolled

    @routes.post("/workers/{worker_id}/token")
    async def access_token(response: Response, worker_id: str, wanted: AccessTokenRequest) -> AccessToken:
        """Give a worker an access token for what its key has signed. It needs no other credential."""
        response.headers["Cache-Control"] = "no-store"
        token, worker = await enrolling.access_token(worker_id, wanted.assertion)
        await service.presence.seen(worker)
        return token

    @routes.post("/workers/{worker_id}/key", status_code=204, dependencies=[BEARER])
    async def rotate_key(worker: ThisWorker, worker_id: str, rotation: KeyRotation) -> None:
        """Put a new key in the place of the worker's; the access tokens it has end at once."""
        require_same(worker, worker_id)
        await enrolling.rotate_key(worker_id, rotation)
        service.room.dismiss(worker_id)  # what the old key's tokens began ends with them
        service.uploads.cut_off(worker_id)

    @routes.get("/workers", dependencies=readers)
    async def list_workers(
        after: str | None = None, limit: Limit = MOST_ROWS
    ) -> dict[str, list[WorkerSummary]]:
        """By name, beginning behind the worker `after`."""
        async with records.read() as connection:
            seen = None
            if after is not None:
                seen = await credential_records.worker_by_id(connection, after)
                if seen is None:
                    raise NotFound(f"after: there is no worker {after}")
            found = await credential_records.list_workers(connection, seen, limit)
        last_seen_ms = service.presence.last_seen_ms
        return {"workers": [replace(each, last_seen_ms=last_seen_ms(each)).summary() for each in found]}

    @routes.post("/workers/{worker_id}/heartbeat", status_code=204, dependencies=[BEARER])
    async def heartbeat(worker: ThisWorker, worker_id: str, beat: Heartbeat) -> None:
        """Still there; perhaps with other tasks, or on another device."""
        require_same(worker, worker_id)
        if beat.tasks is not None:
            async with records.write() as connection:
                await credential_records.set_tasks(connection, worker_id, beat.tasks)
            service.room.dismiss(worker_id)  # what it waits for is another thing now
        if beat.device is not None and beat.device != worker.device:
            async with records.write() as connection:
                await credential_records.set_device(connection, worker_id, beat.device)

    @routes.post("/workers/{worker_id}/approve", status_code=204, dependencies=writers)
    async def approve(worker_id: str) -> None:
        """Let a worker in that waits for it."""
        async with records.write() as connection:
            await the_worker(connection, worker_id)
            await credential_records.approve(connection, worker_id, service.clock.now_ms())

    @routes.post("/workers/{worker_id}/release", status_code=204, dependencies=writers)
    async def release(worker_id: str) -> None:
        """End a worker's quarantine."""
        await quarantine.release(service.runner, worker_id)

    @routes.delete("/workers/{worker_id}", status_code=204, dependencies=writers)
    async def revoke(worker_id: str) -> None:
        """Take a worker's credential away at once."""
        await service.runner.revoke(worker_id)
        service.uploads.cut_off(worker_id)

    return routes
