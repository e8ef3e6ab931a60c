# SPDX-License-Identifier: Apache-2.0
"""Is the process alive, can it serve, and what does it measure."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy.exc import SQLAlchemyError

from protocol.errors import NotReady, StorageNotWritable
from protocol.operator_keys import Scope
from ps_service.openapi import BEARER, TEXT_ANSWERED
from ps_service.service import Service
from ps_service.storage import Stores

log = logging.getLogger("fed_sophia.http")


class Together:
    """Asks something that costs, once at a time: who comes meanwhile hears the same answer.

    Anybody may ask as often as they like whether the stores can be written to, which is found out by writing.
    """

    def __init__(self, asks: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._asks = asks
        self._asking: asyncio.Task[None] | None = None

    async def ask(self) -> None:
        """Raises: what the one who asks meets."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._asks())
        await asyncio.shield(self._asking)


async def _check(stores: Stores) -> None:
    await stores.records.check()
    await asyncio.to_thread(stores.blobs.check)


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["health"])
    may_read = service.auth.operator(Scope.METRICS_READ)
    stores = Together(partial(_check, service.stores))

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
            await stores.ask()
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
