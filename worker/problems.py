# SPDX-License-Identifier: Apache-2.0
"""Which error an unexpected answer stands for: a pure decision."""

from http import HTTPStatus

from protocol.errors import FedSophiaError, InvalidMessage, ServerUnreachable, UnexpectedAnswer, every_error
from protocol.messages import Problem, parse

MEDIA_TYPE = "application/problem+json"

_ERROR_OF_CODE = {error.code: error for error in every_error()}


def error_of(status: int, content_type: str, body: bytes) -> FedSophiaError:
    """Give the error whose code the problem names; `UnexpectedAnswer` for what this version does not know.

    An ingress whose server is away answers in its own words: that is `ServerUnreachable`, which may be
    tried again.
    """
    if content_type.partition(";")[0].strip().lower() != MEDIA_TYPE:
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS:
            return ServerUnreachable(f"something in front of the server answered {status}")
        if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
            return UnexpectedAnswer(f"the server answered {status}: redirects are not followed")
        return UnexpectedAnswer(f"the server answered {status} without saying why")
    try:
        problem = parse(Problem, body)
    except InvalidMessage as error:
        return UnexpectedAnswer(f"the server answered {status}: {error.detail}")
    if problem.code not in _ERROR_OF_CODE:
        return UnexpectedAnswer(f"the server answered {status} {problem.code}: {problem.detail}")
    return _ERROR_OF_CODE[problem.code](problem.detail)
