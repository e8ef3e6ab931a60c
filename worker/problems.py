# SPDX-License-Identifier: Apache-2.0
"""Which error an unexpected answer stands for: a pure decision."""

from http import HTTPStatus

from protocol.errors import (
    ClockSkewed,
    DataUnavailable,
    DeviceUnavailable,
    FedSophiaError,
    InvalidMessage,
    InvalidTask,
    InvalidUsage,
    LocalStateCorrupt,
    MalformedArchive,
    MessageTooLarge,
    MigrationFailed,
    ServerNotTrusted,
    ServerUnreachable,
    StateNotWritable,
    UnexpectedAnswer,
    every_error,
)
from protocol.messages import Problem, parse

MEDIA_TYPE = "application/problem+json"

_OF_THE_WORKER_ALONE = {
    DataUnavailable,
    DeviceUnavailable,
    InvalidTask,
    InvalidUsage,
    LocalStateCorrupt,
    MalformedArchive,
    MigrationFailed,
    ServerNotTrusted,
    ServerUnreachable,
    StateNotWritable,
    UnexpectedAnswer,
}
"""Errors that this side finds by itself: no server can say them."""

_ERROR_OF_CODE = {error.code: error for error in every_error()}

_PASSING = {
    HTTPStatus.NOT_FOUND,
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.MISDIRECTED_REQUEST,
    HTTPStatus.TOO_EARLY,
    HTTPStatus.TOO_MANY_REQUESTS,
}
"""What an ingress answers, beside 5xx, while it has no server to hand the request to."""


def error_of(status: int, content_type: str, body: bytes) -> FedSophiaError:
    """Give the error whose code the problem names.

    What this version does not know is `UnexpectedAnswer`, or `ServerUnreachable` if the problem says that
    it may be tried again. So is the answer of an ingress whose server is away, in words of its own.
    """
    if content_type.partition(";")[0].strip().lower() != MEDIA_TYPE:
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _PASSING:
            return ServerUnreachable(f"something in front of the server answered {status}")
        if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return MessageTooLarge("something in front of the server takes no message of this size")
        if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
            return UnexpectedAnswer(f"the server answered {status}: redirects are not followed")
        return UnexpectedAnswer(f"the server answered {status} without saying why")
    try:
        problem = parse(Problem, body)
    except InvalidMessage as error:
        return UnexpectedAnswer(f"the server answered {status}: {error.detail}")
    known = _ERROR_OF_CODE.get(problem.code)
    if known is ClockSkewed:
        return ClockSkewed(problem.detail, problem.server_ms)
    if known is not None and known not in _OF_THE_WORKER_ALONE:
        return known(problem.detail)
    refusal = ServerUnreachable if known is None and problem.retryable else UnexpectedAnswer
    return refusal(f"the server answered {status} {problem.code}: {problem.detail}")
