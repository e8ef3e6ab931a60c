# SPDX-License-Identifier: Apache-2.0
"""Messages of operators' keys: what each may be used for."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from protocol.fields import Answered, Count, Int, Label, Said


class Scope(StrEnum):
    """What a key may be used for. To write is to read as well."""

    RUNS_READ = "runs:read"
    """Runs, their rounds, versions, events and tensors."""
    RUNS_WRITE = "runs:write"
    """Create, import, pause, resume, cancel; close rounds."""
    WORKERS_READ = "workers:read"
    """Workers and join tokens."""
    WORKERS_WRITE = "workers:write"
    """Make and revoke join tokens, approve, revoke and release workers, grant the role of evaluator."""
    METRICS_READ = "metrics:read"
    """`/metrics`."""
    KEYS_WRITE = "keys:write"
    """Make, list and revoke operators' keys, of no more scopes than one's own."""


def allows(scopes: frozenset[Scope], wanted: Scope) -> bool:
    """Whether these scopes hold what is wanted."""
    return wanted in scopes or Scope.__members__.get(wanted.name.replace("_READ", "_WRITE")) in scopes


class OperatorKeyRequest(Said):
    """`POST /v1/keys`."""

    label: Label
    """What it is known by, in lists and in the audit log."""
    scopes: Annotated[frozenset[Scope], Field(min_length=1)]
    expires_s: Annotated[Int, Field(ge=1, le=10 * 366 * 86_400)] | None = None
    """None: it is good until it is revoked, or for as long as the key that makes it."""


class OperatorKeySummary(Answered):
    """One row of `GET /v1/keys`."""

    key_id: str
    label: str
    scopes: frozenset[Scope]
    created_ms: Count
    expires_ms: Count | None = None
    revoked_ms: Count | None = None


class OperatorKeyIssued(OperatorKeySummary):
    """The only time an operator's key is shown."""

    operator_key: str
