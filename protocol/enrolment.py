# SPDX-License-Identifier: Apache-2.0
"""Messages of enrolment and credentials: how a device becomes a worker, and what is known of it then."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from protocol.fields import Answered, Count, Identifier, Int, Label, Said, SchemaVersion

PROTOCOL_VERSION = 1


class Role(StrEnum):
    """What a worker may be asked to do. Only an operator grants it, through the join token."""

    TRAINER = "trainer"
    EVALUATOR = "evaluator"


class Enrolment(Said):
    """`POST /v1/workers`, authorised by a join token.

    The device makes its own secret and keeps it. Enrolling again with the same secret gives the same
    worker and uses up nothing.
    """

    schema_version: SchemaVersion = 1
    name: Identifier
    secret: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{43,128}$")]
    """At least 256 random bits, base64url without padding. It is the worker's bearer credential."""
    tasks: Annotated[tuple[Label, ...], Field(min_length=1, max_length=64)]
    protocol_min: Annotated[Count, Field(ge=1)] = PROTOCOL_VERSION
    protocol_max: Annotated[Count, Field(ge=1)] = PROTOCOL_VERSION


class Enrolled(Answered):
    """The server's answer to an enrolment."""

    worker_id: str
    role: Role
    protocol_version: int


class Heartbeat(Said):
    """`POST /v1/workers/{worker}/heartbeat`: still there; the tasks replace those of the enrolment."""

    tasks: Annotated[tuple[Label, ...], Field(min_length=1, max_length=64)] | None = None


class JoinTokenRequest(Said):
    """`POST /v1/tokens`."""

    uses: Annotated[Int, Field(ge=1, le=1_000_000)] = 1
    expires_s: Annotated[Int, Field(ge=1, le=366 * 86_400)] = 86_400
    role: Role = Role.TRAINER
    label: Label = "default"


class JoinTokenIssued(Answered):
    """The only time a join token is shown."""

    token_id: str
    join_token: str
    uses: int
    role: Role
    expires_ms: Count


class WorkerSummary(Answered):
    """One row of `GET /v1/workers`."""

    worker_id: str
    name: str
    role: Role
    tasks: tuple[str, ...]
    enrolled_ms: Count
    last_seen_ms: Count
    lost_ms: Count | None = None
    """Since when it is not heard of."""
    revoked_ms: Count | None = None
