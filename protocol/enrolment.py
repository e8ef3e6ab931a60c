# SPDX-License-Identifier: Apache-2.0
"""Messages of enrolment: how a device becomes a worker, proves who it is, and what is known of it then."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from protocol.fields import Answered, Count, Identifier, Int, Label, OneLine, Said

PROTOCOL_VERSION = 1

PublicKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{43}$")]
"""An Ed25519 public key: its 32 bytes as base64url, a JWK's `x` (RFC 8037)."""
Assertion = Annotated[str, Field(min_length=1, max_length=2048)]
"""A compact JWT that the worker's key has signed, as `protocol.assertions` makes it."""


class Role(StrEnum):
    """What a worker may be asked to do. Only an operator grants it, through the join token."""

    TRAINER = "trainer"
    EVALUATOR = "evaluator"


class Enrolment(Said):
    """`POST /v1/workers`, authorised by a join token.

    The device makes its own key pair and keeps the private half. Enrolling again with the same key gives the
    same worker and uses up nothing.
    """

    schema_version: Annotated[Int, Field(ge=2, le=2)] = 2
    """2: a key in place of a secret that the server was told."""
    name: Identifier
    public_key: PublicKey
    proof: Assertion
    """Signed for `enrol`, by the key it is to prove, for this server and this join token."""
    tasks: Annotated[tuple[Label, ...], Field(min_length=1, max_length=64)]
    protocol_min: Annotated[Count, Field(ge=1)] = PROTOCOL_VERSION
    protocol_max: Annotated[Count, Field(ge=1)] = PROTOCOL_VERSION


class Enrolled(Answered):
    """The server's answer to an enrolment."""

    worker_id: str
    role: Role
    protocol_version: int
    waiting: bool = False
    """Whether an operator has yet to approve this worker."""


class AccessTokenRequest(Said):
    """`POST /v1/workers/{worker}/token`; in the style of RFC 7523, in JSON."""

    assertion: Assertion
    """Signed for `token`. It is good once."""


class AccessToken(Answered):
    """What a worker shows with its requests, for minutes."""

    access_token: str
    expires_s: Count
    """How long it is good for, from now on."""


class KeyRotation(Said):
    """`POST /v1/workers/{worker}/key`: a new key takes the place of the old one, whose tokens end at once."""

    public_key: PublicKey
    proof: Assertion
    """Signed for `rotate`, by the new key."""
    consent: Assertion
    """Signed for `rotate`, by the key that the worker has, with the new one's thumbprint as its `use`.

    An access token alone, which may be stolen, changes no key.
    """


class Heartbeat(Said):
    """`POST /v1/workers/{worker}/heartbeat`: still there; the tasks replace those of the enrolment."""

    tasks: Annotated[tuple[Label, ...], Field(min_length=1, max_length=64)] | None = None
    device: OneLine | None = None
    """What it trains on, for the operator to see: `NVIDIA H100 80GB HBM3`, `cpu`. None leaves it."""


class JoinTokenRequest(Said):
    """`POST /v1/tokens`."""

    uses: Annotated[Int, Field(ge=1, le=1_000_000)] = 1
    expires_s: Annotated[Int, Field(ge=1, le=366 * 86_400)] = 86_400
    role: Role = Role.TRAINER
    label: Label = "default"
    """What its workers are known by."""
    run_id: Identifier | None = None
    """The one run that its workers may take part in; None: every run whose task they serve."""
    approve: bool = False
    """Whether each of its workers waits until an operator says yes."""
    idle_s: Annotated[Int, Field(ge=60, le=366 * 86_400)] | None = None
    """Its workers expire when nothing was heard of them for so long, and each gives its use back."""


class JoinTokenIssued(Answered):
    """The only time a join token is shown."""

    token_id: str
    join_token: str
    uses: int
    role: Role
    expires_ms: Count


class JoinTokenSummary(Answered):
    """One row of `GET /v1/tokens`."""

    token_id: str
    label: str
    role: Role
    uses_left: int
    created_ms: Count
    expires_ms: Count
    run_id: str | None = None
    approve: bool = False
    idle_s: int | None = None
    revoked_ms: Count | None = None


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
    label: str = "default"
    """That of the join token it came by."""
    run_id: str | None = None
    approved_ms: Count | None = None
    """None: an operator has yet to approve it."""
    expired_ms: Count | None = None
    """Since when it is gone for having been idle; it may enrol again."""
    key_thumbprint: str | None = None
    """RFC 7638, of its public key. None: made before workers had keys; it must enrol again."""
    refusals: Count = 0
    """Updates of its that were refused for what is in them, one after the other."""
    quarantined_ms: Count | None = None
    """Since when it is asked for nothing, because of them."""
    device: str | None = None
    """What it trains on, in its own words."""
