# SPDX-License-Identifier: Apache-2.0
"""Is the process alive, can it serve, and what does it measure."""

import asyncio
import logging

from fastapi import APIRouter, Request, Response
from sqlalchemy.exc import SQLAlchemyError

from protocol.errors import NotReady, StorageNotWritable
from protocol.operator_keys import Scope
from ps_service.openapi import BEARER, TEXT_ANSWERED
from ps_service.service import Service

log = logging.getLogger("fed_sophia.http")


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["health"])
    may_read = service.auth.operator(Scope.METRICS_READ)

    @routes.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process runs."""
        return {"status": "ok"}

    @routes.get("/readyz")
    async def readyz() -> dict[str, str]:
        """Both stores can be written to, and no stop was asked for."""
        if service.stopping.is_set():
            raise NotReady("the server is stopping")
        try:
            await service.stores.records.check()
            await asyncio.to_thread(service.stores.blobs.check)
        except StorageNotWritable as error:
            raise NotReady(error.detail) from error
        except (SQLAlchemyError, OSError) as error:
            log.exception("a store does not answer")
            raise NotReady("a store does not answer; the server's log has the reason") from error
        return {"status": "ready"}

    @routes.get("/metrics", response_class=Response, responses={200: TEXT_ANSWERED}, dependencies=[BEARER])
    async def metrics(request: Request) -> Response:
        """Prometheus text."""
        if not service.settings.metrics_public:
            await may_read(request)
        return Response(service.meters.exposition(), media_type="text/plain; version=0.0.4")

    return routes
