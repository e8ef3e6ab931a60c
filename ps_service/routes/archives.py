# SPDX-License-Identifier: Apache-2.0
"""Runs that come from an archive."""

import asyncio
import zlib
from typing import Any

from fastapi import APIRouter, Depends, Request

from protocol.errors import InvalidMessage, MessageTooLarge, NotFound, UnsupportedMediaType
from protocol.messages import RunSummary
from protocol.operator_keys import Scope
from protocol.run_archive import MAX_DOCUMENT_BYTES, RunArchive, read_document
from ps_service.admission import check_model_size
from ps_service.archives import import_run
from ps_service.openapi import BEARER
from ps_service.routes.tensors import DigestPath
from ps_service.service import Service

_GZIP = 31  # zlib's word for one gzip member with its checksum


def router(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["archives"], dependencies=[BEARER])
    operators = Depends(service.auth.operator(Scope.RUNS_WRITE))

    @routes.head("/tensors/{digest}", status_code=204, dependencies=[operators])
    async def is_stored(digest: DigestPath) -> None:
        """Whether a tensor message is stored already: it need not be sent again."""
        service.housekeeping.spare(digest)
        if await asyncio.to_thread(service.stores.blobs.size, digest) is None:
            raise NotFound(f"nothing is stored under {digest}")

    @routes.post("/runs/import", status_code=201, dependencies=[operators], openapi_extra=_archive_sent())
    async def import_archive(request: Request) -> RunSummary:
        """Make a new run of an archive's document; its tensors were stored before."""
        # read here, not by a parameter: a stranger must not have this much unpacked and parsed
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            found = media_type[:64] or "none"
            raise UnsupportedMediaType(f"Content-Type: expected application/json, got {found}")
        coding = request.headers.get("content-encoding", "identity").lower()
        archive = await asyncio.to_thread(read_archive, await request.body(), coding)
        settings = service.settings
        check_model_size(archive.spec.model, settings.max_model_tensors, settings.max_model_bytes)
        return await import_run(service.runner, archive)

    return routes


def read_archive(body: bytes, coding: str) -> RunArchive:
    """Unpack and validate a document, in bounded memory.

    Raises:
        UnsupportedMediaType: it is packed in another way than by gzip.
        MessageTooLarge: unpacked it is longer than any archive's.
        InvalidMessage: it is no archive's document.
    """
    if coding == "gzip":
        body = _unpacked(body)
    elif coding != "identity":
        raise UnsupportedMediaType(f"Content-Encoding: expected gzip or none, got {coding[:32]}")
    return read_document(body)


def _unpacked(body: bytes) -> bytes:
    unpacking = zlib.decompressobj(_GZIP)
    try:
        unpacked = unpacking.decompress(body, MAX_DOCUMENT_BYTES)
        more = unpacking.decompress(unpacking.unconsumed_tail, 1) if unpacking.unconsumed_tail else b""
    except zlib.error as error:
        raise InvalidMessage(f"Content-Encoding: the body is no gzip: {error}") from None
    if more:
        raise MessageTooLarge(f"the body is longer than {MAX_DOCUMENT_BYTES} bytes once unpacked")
    if not unpacking.eof or unpacking.unused_data:
        raise InvalidMessage("Content-Encoding: expected one whole gzip stream, and nothing behind it")
    return unpacked


def _archive_sent() -> dict[str, Any]:
    """The body for `/openapi.json`, which the framework cannot see."""
    schema = RunArchive.model_json_schema()
    described = _inlined(schema, schema.pop("$defs"))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": described}}}}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_inlined(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        schema = definitions[schema["$ref"].removeprefix("#/$defs/")] | schema
    return {key: _inlined(each, definitions) for key, each in schema.items() if key != "$ref"}
