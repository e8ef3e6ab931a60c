# SPDX-License-Identifier: Apache-2.0
"""A run's events as they happen, over server-sent events."""

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Request
from starlette.responses import StreamingResponse

from protocol.errors import FedSophiaError
from protocol.operator_keys import Scope
from ps_service.auth import Operator
from ps_service.bell import run_topic, wait_for_ring
from ps_service.openapi import BEARER, EVENTS_ANSWERED
from ps_service.service import Service
from ps_service.storage import report_records
from ps_service.storage.existing import the_run

KEEP_ALIVE_S = 15.0
LINGER_S = 30.0
"""An ended run may still get metrics of its last version."""


def router(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["events"], dependencies=[BEARER])

    may_read = service.auth.operator(Scope.RUNS_READ)

    @routes.get("/runs/{run_id}/events", response_class=StreamingResponse, responses={200: EVENTS_ANSWERED})
    async def follow(
        request: Request, run_id: str, last_event_id: Annotated[str, Header()] = "0"
    ) -> StreamingResponse:
        """`run`, `round` and `metrics` events; `Last-Event-ID` resumes after one."""
        await may_read(request)
        async with service.stores.records.read() as connection:
            await the_run(connection, run_id)
            latest = await report_records.latest_event(connection, run_id)
        after = int(last_event_id) if last_event_id.isdecimal() and len(last_event_id) <= 18 else 0
        if after > latest:  # seen before the records were restored from a backup
            after = 0
        return StreamingResponse(
            _events(service, partial(may_read, request), run_id, after),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    return routes


async def _events(
    service: Service, may_read: Callable[[], Awaitable[Operator]], run_id: str, after: int
) -> AsyncIterator[str]:
    records = service.stores.records
    silent_s = 0.0
    with service.bell.listen([run_topic(run_id)]) as rung:
        while not service.stopping.is_set():
            try:
                await may_read()  # the key may be of no use any more
            except FedSophiaError:
                return
            async with records.read() as connection:
                events = await report_records.events_after(connection, run_id, after)
                run = await the_run(connection, run_id)
            for event in events:
                after = event.event_id
                yield f"id: {event.event_id}\nevent: {event.kind}\ndata: {event.data}\n\n"
            if events:
                silent_s = 0.0
                continue
            if run.state.status.ended and silent_s >= LINGER_S:
                return
            if not await wait_for_ring(rung, KEEP_ALIVE_S):
                silent_s += KEEP_ALIVE_S
                yield ": still here\n\n"
