# SPDX-License-Identifier: Apache-2.0
"""What a server's answer says, read from its headers and its bytes: pure decisions."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from protocol.errors import MessageTooLarge, UnexpectedAnswer
from protocol.messages import ANY_ASSIGNMENT, Assignment, EvaluationAssignment
from worker.retry import RetryAfter

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class NothingYet:
    """There is no assignment yet."""

    next_wait_s: float | None = None
    """How long the server advises to wait the next time."""


def parsed(message: type[M], body: bytes) -> M:
    """Raises: UnexpectedAnswer: the body is no such message."""
    try:
        return message.model_validate_json(body)
    except ValidationError as error:
        raise UnexpectedAnswer(f"{message.__name__} was expected: {_first_of(error)}") from None


def assignment_in(body: bytes) -> Assignment | EvaluationAssignment:
    """Raises: UnexpectedAnswer: the body is no assignment."""
    try:
        return ANY_ASSIGNMENT.validate_json(body)
    except ValidationError as error:
        raise UnexpectedAnswer(f"an assignment was expected: {_first_of(error)}") from None


def size_of_tensors(content_length: str, at_most_bytes: int) -> int:
    """How many bytes of tensors are coming.

    Raises:
        UnexpectedAnswer: the header does not say.
        MessageTooLarge: they are too many.
    """
    if not (content_length.isascii() and content_length.isdigit()):
        raise UnexpectedAnswer("tensors came without a Content-Length")
    if float(content_length) > at_most_bytes:  # not int: it refuses thousands of digits in its own words
        raise MessageTooLarge(f"{content_length} bytes of tensors; at most {at_most_bytes} are taken")
    return int(content_length)


def number_in(value: str, header: str) -> int:
    """Raises: UnexpectedAnswer: the header is no number, or none that a length can be."""
    if not (value.isascii() and value.isdigit() and len(value) <= 18):
        raise UnexpectedAnswer(f"{header}: a number was expected, got {value[:32] or 'none'}")
    return int(value)


def announced(status: int, headers: Mapping[str, str], first: int, at_most_bytes: int) -> tuple[int, int]:
    """Of an answer to a request for the bytes from `first` on: (bytes in all, where those that come begin).

    Raises: as `size_of_range`.
    """
    if status == HTTPStatus.PARTIAL_CONTENT:
        return size_of_range(headers.get("Content-Range", ""), first, at_most_bytes), first
    return size_of_tensors(headers.get("Content-Length", ""), at_most_bytes), 0


def size_of_range(content_range: str, first: int, at_most_bytes: int) -> int:
    """How many bytes of tensors there are, of which those from `first` to the end are coming.

    Raises:
        UnexpectedAnswer: it is another range.
        MessageTooLarge: they are too many.
    """
    found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", content_range, re.ASCII)
    if found is None or int(found[1]) != first or int(found[2]) + 1 != int(found[3]):
        raise UnexpectedAnswer(f"bytes from {first} to the end were expected, got {content_range[:64]!r}")
    return size_of_tensors(found[3], at_most_bytes)


def wait_asked_for(retry_after: str) -> RetryAfter | None:
    """What a `Retry-After` of whole seconds asks for; None when there is none, or no wait."""
    wait_s = float(retry_after) if retry_after.isascii() and retry_after.isdigit() else 0.0
    return RetryAfter(wait_s) if wait_s else None


def nothing_yet(next_wait: str) -> NothingYet:
    """What an answer without an assignment says, with a `Next-Wait` of whole seconds; any other is none."""
    understood = next_wait.isascii() and next_wait.isdigit()
    return NothingYet(float(next_wait) if understood else None)


def _first_of(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
