# SPDX-License-Identifier: Apache-2.0
"""Join tokens, enrolment, heartbeats, revocation."""

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from protocol.errors import NotFound
from protocol.messages import Enrolled, Enrolment, Heartbeat, JoinTokenIssued, JoinTokenRequest, WorkerSummary
from ps_service.auth import require_bearer, require_same
from ps_service.openapi import BEARER
from ps_service.routes.pages import Limit
from ps_service.service import Service
from ps_service.storage import credential_records
from ps_service.storage.credential_records import StoredWorker
from ps_service.storage.run_records import MOST_ROWS


def router(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["workers"], dependencies=[BEARER])
    auth, records = service.auth, service.stores.records
    # as dependencies, so that a stranger learns nothing of what a body should have been
    operators = Depends(auth.operator)
    ThisWorker = Annotated[StoredWorker, Depends(auth.worker)]  # noqa: N806  # a type

    @routes.post("/tokens", status_code=201, dependencies=[operators])
    async def create_token(response: Response, wanted: JoinTokenRequest) -> JoinTokenIssued:
        """Make a join token; it is shown this once."""
        response.headers["Cache-Control"] = "no-store"
        return await auth.issue_join_token(wanted)

    @routes.post(
        "/workers",
        status_code=201,
        dependencies=[Depends(require_bearer)],
        responses={200: {"description": "This device is enrolled already.", "model": Enrolled}},
    )
    async def enrol(request: Request, response: Response, enrolment: Enrolment) -> Enrolled:
        """Enrol a device by a join token; again with the same secret gives the same worker."""
        enrolled, is_new = await auth.enrol(request, enrolment)
        service.room.dismiss(enrolled.worker_id)
        response.status_code = 201 if is_new else 200
        return enrolled

    @routes.get("/workers", dependencies=[operators])
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

    @routes.post("/workers/{worker_id}/heartbeat", status_code=204)
    async def heartbeat(worker: ThisWorker, worker_id: str, beat: Heartbeat) -> None:
        """Still there; perhaps with other tasks."""
        require_same(worker, worker_id)
        if beat.tasks is not None:
            async with records.write() as connection:
                await credential_records.set_tasks(connection, worker_id, beat.tasks)
            service.room.dismiss(worker_id)  # what it waits for is another thing now

    @routes.delete("/workers/{worker_id}", status_code=204, dependencies=[operators])
    async def revoke(worker_id: str) -> None:
        """Take a worker's credential away at once."""
        await service.runner.revoke(worker_id)

    return routes
