# SPDX-License-Identifier: Apache-2.0
"""Messages of an update: its declaration, its receipt, and the word that none will come."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from protocol.fields import Answered, Count, Digest, Int, Label, Metrics, PerBundle, Said, SchemaVersion


class UpdateHeader(Said):
    """`POST /v1/assignments/{id}/update`: what the worker is about to send."""

    schema_version: SchemaVersion = 1
    digest: Digest
    size_bytes: Annotated[Int, Field(ge=1, lt=2**53)]
    bundles: Annotated[tuple[Label, ...], Field(max_length=16)]
    encodings: PerBundle
    num_examples: Annotated[Int, Field(ge=1, le=10_000_000)]
    """Examples the worker holds, not those it drew."""
    local_steps: Annotated[Int, Field(ge=1, le=1_000_000)]
    """Steps done: at most those assigned."""
    metrics: Metrics = Field(default_factory=dict, max_length=32)


class StoreRequest(Answered):
    """A request that a worker may make of the object store itself, as nobody: its address is signed."""

    url: Annotated[str, Field(max_length=16_384)]
    headers: Annotated[dict[str, str], Field(max_length=16)] = Field(default_factory=dict)


class UploadOffer(Answered):
    """The answer to a declaration whose body is still missing."""

    upload_url: str
    """Path on this server. `HEAD` tells the offset, `PUT` sends the whole body."""
    offset: int
    put: StoreRequest | None = None
    """In a run with pre-signed transfers: puts the whole body into the store. `POST {upload_url}/stored` says
    that it is there."""


class Outcome(StrEnum):
    """What became of an update. It ends as COUNTED or NOT_COUNTED, never as both."""

    PENDING = "pending"
    COUNTED = "counted"
    NOT_COUNTED = "not-counted"


class Admitted(StrEnum):
    """When the values of an update were found good, or are."""

    ON_ARRIVAL = "on-arrival"
    AT_AGGREGATION = "at-aggregation"
    """It went to the store, past the server: until its round is combined it may still be found not good."""


class Receipt(Answered):
    """The server has the update on durable storage: it is not lost and not counted twice."""

    assignment_id: str
    digest: Digest
    received_ms: Count
    outcome: Outcome
    admitted: Admitted = Admitted.ON_ARRIVAL
    version: int | None = None
    """The version it was counted in."""
    reason: str | None = None
    """Why it was not counted."""


class Decline(Said):
    """`POST /v1/assignments/{id}/decline`."""

    # no zero, which PostgreSQL does not take
    reason: Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00]+$")]
