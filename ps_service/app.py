# SPDX-License-Identifier: Apache-2.0
"""The composition root of the server. No logic."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI

from protocol.errors import TooManyUploads, TooManyWaiting
from ps_service.audit import Audit, Audited
from ps_service.auth import Auth
from ps_service.background import background
from ps_service.bell import Bell
from ps_service.clock import Clock
from ps_service.enrolling import Enrolling
from ps_service.fellows import Fellows
from ps_service.housekeeping import Housekeeping
from ps_service.limits import AddressRate, JsonBodyLimit
from ps_service.looking import look_for_work
from ps_service.metrics import Meters
from ps_service.openapi import PROBLEM, DescribedApp
from ps_service.operator_keys import OperatorKeys
from ps_service.pace import Pace
from ps_service.places import Places
from ps_service.presence import Presence
from ps_service.presigned import Presigned
from ps_service.rates import Rates
from ps_service.round_runner import RoundRunner
from ps_service.routes import ROUTERS
from ps_service.routes.problems import install
from ps_service.run_disk import RunDisk
from ps_service.service import Service
from ps_service.settings import Settings
from ps_service.storage import Stores
from ps_service.tls import advertised_ca
from ps_service.uploads import Uploads
from ps_service.waiting_room import WaitingRoom


def create_service(settings: Settings, stores: Stores, clock: Clock, audit: Audit) -> Service:
    """Put the parts of a server together over stores that are open already."""
    bell, meters = Bell(), Meters()
    runner = RoundRunner(stores, clock, bell, meters)
    presence = Presence(
        runner,
        settings.lost_after_s,
        lambda worker_id: audit.note("server", "expire", {"worker_id": worker_id}),
    )
    ca = advertised_ca(settings)
    fellows = Fellows(runner)
    rates = Rates(
        clock,
        settings.requests_per_s_per_worker,
        settings.requests_per_s_per_address,
        lambda: fellows.count,
    )
    ca_hash = None if ca is None else ca.ca_hash
    enrolling = Enrolling(stores, clock, rates, settings.access_token_s, ca_hash)
    auth, uploads = Auth(stores, clock, presence, rates), Uploads(stores.blobs, shared=stores.records.shared)
    housekeeping = Housekeeping(runner, uploads, enrolling.forget)
    room = WaitingRoom(bell, partial(look_for_work, runner, presence.heartbeat_s))
    pace = Pace(settings.max_wait_s)
    return Service(
        settings,
        stores,
        clock,
        bell,
        meters,
        ca,
        audit,
        auth,
        enrolling,
        OperatorKeys(stores, clock, enrolling),
        runner,
        presence,
        uploads,
        housekeeping,
        room,
        pace,
        Places(settings.max_uploads, settings.max_uploads_per_worker, TooManyUploads),
        Places(settings.max_waiting, settings.max_waiting_per_worker, TooManyWaiting),
        rates,
        RunDisk(clock, settings.max_run_disk_bytes, shared=stores.records.shared),
        fellows,
        Presigned(stores),
    )


def create_app(settings: Settings, stores: Stores, clock: Clock, audit_log: Path | None = None) -> FastAPI:
    """The ASGI application. Its lifespan runs the background work; `app.state.service` has the parts.

    Args: audit_log: the file that is appended to; None: nothing is kept of who did what.
    """
    service = create_service(settings, stores, clock, Audit(audit_log, clock))

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with background(service):
            yield
        await service.room.close()
        await service.uploads.close()

    app = DescribedApp(
        title="fed-sophia parameter server",
        version=version("fed-sophia"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses={"default": PROBLEM},
    )
    app.state.service = service
    install(app, service.meters)
    app.add_middleware(
        JsonBodyLimit,
        max_bytes=settings.max_json_bytes,
        timeout_s=settings.body_timeout_s,
        meters=service.meters,
        is_operator=service.auth.is_operator,
    )
    app.add_middleware(Audited, audit=service.audit)
    app.add_middleware(AddressRate, rates=service.rates, meters=service.meters)  # the last is the first
    for router in ROUTERS:
        app.include_router(router(service))
    return app
