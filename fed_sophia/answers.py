# SPDX-License-Identifier: Apache-2.0
"""What a server's answer says: a message, a page of a list, or the error that a refusal stands for."""

from typing import TypeVar

from pydantic import BaseModel

from protocol.errors import FedSophiaError, InvalidMessage, UnexpectedAnswer, every_error
from protocol.messages import (
    JoinTokenSummary,
    Problem,
    RoundSummary,
    RunSummary,
    VersionSummary,
    WorkerInRound,
    WorkerSummary,
    parse,
)
from protocol.operator_keys import OperatorKeySummary

M = TypeVar("M", bound=BaseModel)

_ERRORS = {error.code: error for error in every_error()}


class Runs(BaseModel):
    runs: tuple[RunSummary, ...]


class Rounds(BaseModel):
    rounds: tuple[RoundSummary, ...]


class Versions(BaseModel):
    versions: tuple[VersionSummary, ...]


class JoinTokens(BaseModel):
    tokens: tuple[JoinTokenSummary, ...]


class OperatorKeys(BaseModel):
    keys: tuple[OperatorKeySummary, ...]


class Workers(BaseModel):
    workers: tuple[WorkerSummary, ...]


class WorkersInRound(BaseModel):
    workers: tuple[WorkerInRound, ...]


def parsed(message: type[M], body: bytes, path: str) -> M:
    """Read the body of the answer from `path` as `message`.

    Raises:
        UnexpectedAnswer: it is something else; perhaps this is no parameter server.
    """
    try:
        return parse(message, body)
    except InvalidMessage as error:
        raise UnexpectedAnswer(f"{path} answered no {message.__name__}: {error.detail}") from None


def error_in(body: bytes, answered: str) -> FedSophiaError:
    """The error that a refusal carries.

    Args: answered: who answered what, for an answer that is no refusal of ours.
    """
    try:
        problem = parse(Problem, body)
    except InvalidMessage:
        return UnexpectedAnswer(
            f"{answered} without a problem document; is this the parameter server's address?"
        )
    kind = _ERRORS.get(problem.code)
    return kind(problem.detail) if kind else UnexpectedAnswer(f"{problem.code}: {problem.detail}")
