# SPDX-License-Identifier: Apache-2.0
"""Errors as answers: the only table from codes to statuses (RFC 9457, `application/problem+json`)."""

import logging
import math
from http import HTTPStatus

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from protocol import errors
from protocol.errors import FedSophiaError
from protocol.messages import Problem
from ps_service.metrics import Meters

log = logging.getLogger("fed_sophia.http")
MAX_DETAIL = 1000
"""Characters."""

STATUS: dict[type[FedSophiaError], int] = {
    errors.InvalidMessage: 422,
    errors.MalformedTensorMessage: 400,
    errors.TruncatedTensorMessage: 400,
    errors.MessageTooLarge: 413,
    errors.UnsupportedVersion: 400,
    errors.UnknownEncoding: 400,
    errors.UnknownAlgorithm: 422,
    errors.DigestMismatch: 400,
    errors.SizeMismatch: 400,
    errors.ShapeMismatch: 422,
    errors.BundleMismatch: 422,
    errors.NotFinite: 422,
    errors.OutsideBound: 422,
    errors.NegativeHessian: 422,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.JoinTokenRefused: 403,
    errors.WorkerRevoked: 403,
    errors.WorkerExpired: 403,
    errors.WorkerQuarantined: 403,
    errors.ApprovalPending: 403,
    errors.MissingScope: 403,
    errors.AssertionRefused: 401,
    errors.ClockSkewed: 401,
    errors.NotFound: 404,
    errors.MethodNotAllowed: 405,
    errors.UnsupportedMediaType: 415,
    errors.RangeNotSatisfiable: 416,
    errors.LengthRequired: 411,
    errors.UnknownTensors: 422,
    errors.RoundClosed: 409,
    errors.TooStale: 409,
    errors.RunEnded: 409,
    errors.AssignmentDeclined: 409,
    errors.UpdateConflict: 409,
    errors.UploadInProgress: 409,
    errors.UploadInterrupted: 408,
    errors.UploadOffsetMismatch: 409,
    errors.QuorumMissing: 409,
    errors.HeadersTooLarge: 431,
    errors.ModelTooLarge: 413,
    errors.TooManyExamples: 422,
    errors.RunDiskFull: 507,
    errors.TooManyRequests: 429,
    errors.TooManyUploads: 429,
    errors.TooManyWaiting: 429,
    errors.Internal: 500,
    errors.NotReady: 503,
    errors.StorageCorrupt: 500,
    errors.StorageNotWritable: 507,
    errors.StorageUnavailable: 503,
}

_OF_STATUS: dict[int, type[FedSophiaError]] = {
    404: errors.NotFound,
    405: errors.MethodNotAllowed,
    413: errors.MessageTooLarge,
    415: errors.UnsupportedMediaType,
}


def answer(error: FedSophiaError) -> JSONResponse:
    """The answer that tells a caller of this error."""
    status = STATUS.get(type(error), 500)
    problem = Problem(
        type=f"urn:fed-sophia:problem:{error.code}",
        title=(type(error).__doc__ or error.code).strip(),
        status=status,
        detail=_short(error.detail),
        code=error.code,
        retryable=error.retryable,
        server_ms=error.server_ms if isinstance(error, errors.ClockSkewed) else None,
    )
    headers = {}
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if error.retryable:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    return JSONResponse(
        problem.model_dump(exclude_none=True), status, headers=headers, media_type="application/problem+json"
    )


def _short(detail: str) -> str:
    """Callers name fields and paths of any length; their names are not sent back whole."""
    return detail if len(detail) <= MAX_DETAIL else f"{detail[: MAX_DETAIL - 1]}…"


def install(app: FastAPI, meters: Meters) -> None:
    """Turn every error of this application into a problem."""

    def refuse(error: FedSophiaError) -> JSONResponse:
        meters.refusals.labels(code=error.code).inc()
        return answer(error)

    @app.exception_handler(FedSophiaError)
    async def named(request: Request, error: FedSophiaError) -> JSONResponse:
        if STATUS.get(type(error), 500) >= 500:
            log.error("%s %s: %s: %s", request.method, request.url.path, error.code, error.detail)
        return refuse(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        why = first["msg"].removeprefix("Value error, ")
        return refuse(errors.InvalidMessage(f"{where}: {why}"))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        of_status = _OF_STATUS.get(error.status_code, errors.InvalidMessage)
        problem = refuse(of_status(f"{request.method} {request.url.path}: {error.detail}"))
        problem.headers.update(error.headers or {})  # `Allow`, for one
        return problem

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return refuse(errors.Internal("the server failed; its log has the reason"))
