# SPDX-License-Identifier: Apache-2.0
"""Global state by digest: immutable, so cached for ever, and served in ranges."""

import asyncio
import base64
import contextlib
import re
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Path, Request, Response
from starlette.responses import StreamingResponse

from protocol.codec import MEDIA_TYPE, MessageHeader
from protocol.errors import (
    MessageTooLarge,
    NotFound,
    NotReady,
    RangeNotSatisfiable,
    StorageCorrupt,
)
from protocol.messages import Role
from protocol.operator_keys import Scope
from ps_service.admission import check_model_size, require_state_message
from ps_service.auth import Caller
from ps_service.intake import Intake, accept_finite
from ps_service.openapi import BEARER, TENSORS_ANSWERED, TENSORS_SENT
from ps_service.presigned import prefers_presigned
from ps_service.routes.bodies import Body, content_length, require_tensor_message
from ps_service.service import Service
from ps_service.settings import Settings
from ps_service.storage import condemned_records, version_records
from ps_service.storage.credential_records import StoredWorker

DigestPath = Annotated[str, Path(pattern="^[0-9a-f]{64}$")]


def router(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["tensors"], dependencies=[BEARER])
    auth, blobs = service.auth, service.stores.blobs
    may_store = auth.operator(Scope.RUNS_WRITE)

    @routes.put(
        "/tensors/{digest}",
        status_code=201,
        responses={200: {"description": "It was stored before.", "model": dict[str, str]}},
        openapi_extra=TENSORS_SENT,
    )
    async def store(request: Request, response: Response, digest: DigestPath) -> dict[str, str]:
        """Store a `state` message before a run names it."""
        body = Body(request, service)
        try:
            await may_store(request)
            body.sender_is_known()
            require_tensor_message(request, None)
            size_bytes = content_length(request)
            most = service.settings.max_body_bytes
            if size_bytes > most:
                raise MessageTooLarge(f"Content-Length: {size_bytes}; at most {most} are accepted")
            service.housekeeping.spare(digest)
            async with service.stores.records.glance() as connection:
                if await condemned_records.condemned_now(connection, digest):
                    raise NotReady("these tensors are just being deleted; store them again in a moment")
            if await asyncio.to_thread(blobs.size, digest) is not None:
                body.sender_is_known(size_bytes)
                await body.drain()
                response.status_code = 200
                return {"digest": digest}
            with service.uploading.one(None):
                intake = Intake(
                    await asyncio.to_thread(blobs.stage),
                    digest,
                    size_bytes,
                    partial(_check_stored, service.settings),
                    accept_finite,
                )
                try:
                    await body.into(intake)
                    await asyncio.to_thread(intake.finish)
                    await asyncio.to_thread(intake.seal)
                finally:
                    await asyncio.to_thread(intake.discard)
        except Exception:  # whatever it is: who is still sending hears of nothing
            await body.drain()
            raise
        return {"digest": digest}

    @routes.get(
        "/runs/{run_id}/tensors/{digest}", response_class=StreamingResponse, responses=TENSORS_ANSWERED
    )
    @routes.head("/runs/{run_id}/tensors/{digest}", include_in_schema=False)
    async def fetch(request: Request, run_id: str, digest: DigestPath) -> Response:
        """One bundle of a version of the run's state, whole or in part."""
        caller = await auth.caller(request, Scope.RUNS_READ)
        await _require_reader(service, caller, run_id, digest)
        size_bytes = await asyncio.to_thread(blobs.size, digest)
        if size_bytes is None:
            await _require_reader(service, caller, run_id, digest)  # it may have been collected meanwhile
            raise StorageCorrupt(f"tensor message {digest} is missing")
        headers = _headers(digest)
        if _is_cached(request, digest):
            return Response(status_code=304, headers=headers)
        first, last = wanted_range(request, digest, size_bytes)
        status = 200
        if (first, last) != (0, size_bytes - 1):
            status = 206
            headers["Content-Range"] = f"bytes {first}-{last}/{size_bytes}"
        headers["Content-Length"] = str(last + 1 - first)
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers, media_type=MEDIA_TYPE)
        if prefers_presigned(request.headers.get("prefer", "")):
            address = await service.presigned.download(run_id, digest)
            if address is not None:
                service.runner.count_sent(run_id, last + 1 - first, to_trainer=_trains(caller))
                return Response(status_code=307, headers={"Location": address, "Cache-Control": "no-store"})
        body = _send(service, caller, run_id, digest, first, last)
        return StreamingResponse(body, status, headers=headers, media_type=MEDIA_TYPE)

    return routes


def _check_stored(settings: Settings, message: MessageHeader) -> None:
    require_state_message(message)
    check_model_size(message.tensors, settings.max_model_tensors, settings.max_model_bytes)


async def _require_reader(service: Service, caller: Caller, run_id: str, digest: str) -> None:
    """Raises: NotFound: no such state, or the caller has no part in the run: the two look alike."""
    worker_id = caller.worker_id if isinstance(caller, StoredWorker) else None
    async with service.stores.records.glance() as connection:
        found = await version_records.readable(connection, run_id, digest, worker_id)
    allowed = found is not None and found.is_state
    if found is not None and isinstance(caller, StoredWorker):
        evaluates = caller.role is Role.EVALUATOR and caller.may_serve(run_id, found.task)
        allowed = allowed and (evaluates or found.is_member)
    if not allowed:
        raise NotFound(f"run {run_id} has no tensors {digest}")


def _headers(digest: str) -> dict[str, str]:
    checksum = base64.b64encode(bytes.fromhex(digest)).decode()
    return {
        "ETag": f'"{digest}"',
        "Cache-Control": "private, max-age=31536000, immutable",
        "Accept-Ranges": "bytes",
        "Repr-Digest": f"sha-256=:{checksum}:",
    }


def _is_cached(request: Request, digest: str) -> bool:
    known = [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]
    return "*" in known or f'"{digest}"' in known or f'W/"{digest}"' in known


def wanted_range(request: Request, digest: str, size_bytes: int) -> tuple[int, int]:
    """First and last byte to send. Several ranges, other units or a stale `If-Range` get everything.

    Raises:
        RangeNotSatisfiable: the range begins after the end.
    """
    everything = (0, size_bytes - 1)
    found = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", request.headers.get("range", "").strip())
    if_range = request.headers.get("if-range", f'"{digest}"')
    if found is None or if_range != f'"{digest}"' or not (found[1] or found[2]):
        return everything
    if not found[1]:
        first, last = max(size_bytes - int(found[2]), 0), size_bytes - 1
    else:
        first, last = int(found[1]), min(int(found[2] or size_bytes), size_bytes - 1)
    if first >= size_bytes or (int(found[2] or 1) == 0 and not found[1]):
        raise RangeNotSatisfiable(f"Range: {found[0]}; there are {size_bytes} bytes")
    return everything if first > last else (first, last)


def _trains(caller: Caller) -> bool:
    return isinstance(caller, StoredWorker) and caller.role is Role.TRAINER


async def _send(
    service: Service, caller: Caller, run_id: str, digest: str, first: int, last: int
) -> AsyncIterator[memoryview]:
    """The bytes first … last; a piece is read while the one before it is sent."""
    to_trainer = _trains(caller)

    def read(position: int, size_bytes: int) -> memoryview:
        piece = np.empty(size_bytes, np.uint8).data
        service.stores.blobs.read_into(digest, position, piece)
        return piece

    def begin_to_read(position: int) -> asyncio.Future[memoryview]:
        size_bytes = min(service.pieces.size_bytes, last + 1 - position)
        reading = asyncio.ensure_future(asyncio.to_thread(read, position, size_bytes))
        # taken, so that the loop does not complain of an error that nobody stayed to hear
        reading.add_done_callback(lambda done: done.cancelled() or done.exception())
        return reading

    with contextlib.ExitStack() as sending:
        if isinstance(caller, StoredWorker):
            sending.enter_context(service.presence.here(caller.worker_id))
        sending.enter_context(service.pieces.transfer())
        position, following = first, begin_to_read(first)
        try:
            while position <= last:
                piece = await following
                position += len(piece)
                if position <= last:
                    following = begin_to_read(position)
                yield piece
                service.runner.count_sent(run_id, len(piece), to_trainer=to_trainer)
        finally:
            following.cancel()
