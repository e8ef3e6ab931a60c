# SPDX-License-Identifier: Apache-2.0
"""The JSON messages of the control plane, all frozen.

Times are UTC integer milliseconds. Unknown fields are refused in what a caller sends and ignored in
what a server answers, so that a newer server can say more. Each message that is stored or that
opens an exchange carries `schema_version`; those of a released version load for ever.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, TypeAdapter, ValidationError

from protocol.enrolment import (
    PROTOCOL_VERSION,
    AccessToken,
    AccessTokenRequest,
    Enrolled,
    Enrolment,
    Heartbeat,
    JoinTokenIssued,
    JoinTokenRequest,
    JoinTokenSummary,
    KeyRotation,
    Role,
    WorkerSummary,
)
from protocol.errors import InvalidMessage
from protocol.estimates import GAUSS_NEWTON_BARTLETT
from protocol.fields import (
    Answered,
    Count,
    Digest,
    Finite,
    Identifier,
    Int,
    Label,
    Metrics,
    Said,
    SchemaVersion,
    Seed,
)
from protocol.run_spec import (
    AdaptiveDeadline,
    AsynchronousRounds,
    BestVersions,
    Retention,
    RunSpec,
    Seconds,
    TargetMetric,
    TensorSpec,
    Weighting,
)
from protocol.updates import Admitted, Decline, Outcome, Receipt, StoreRequest, UpdateHeader, UploadOffer

__all__ = [
    "ANY_ASSIGNMENT",
    "PROTOCOL_VERSION",
    "AccessToken",
    "AccessTokenRequest",
    "AdaptiveDeadline",
    "Admitted",
    "Answered",
    "AsynchronousRounds",
    "BestVersions",
    "Decline",
    "Digest",
    "Enrolled",
    "Enrolment",
    "Heartbeat",
    "JoinTokenIssued",
    "JoinTokenRequest",
    "JoinTokenSummary",
    "KeyRotation",
    "Outcome",
    "Receipt",
    "Retention",
    "Role",
    "RunSpec",
    "Said",
    "StoreRequest",
    "TargetMetric",
    "TensorSpec",
    "UpdateHeader",
    "UploadOffer",
    "Weighting",
    "WorkerSummary",
]

M = TypeVar("M", bound=BaseModel)

# --- runs --------------------------------------------------------------------------------------


class RunStatus(StrEnum):
    """Where a run stands."""

    WAITING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (RunStatus.FINISHED, RunStatus.FAILED, RunStatus.CANCELLED)


class RoundStatus(StrEnum):
    """Where a round stands."""

    COLLECTING = "collecting"
    AGGREGATING = "aggregating"
    COMMITTED = "committed"
    ABANDONED = "abandoned"

    @property
    def ended(self) -> bool:
        return self in (RoundStatus.COMMITTED, RoundStatus.ABANDONED)


def _without_unknown_fields(spec: object) -> object:
    if isinstance(spec, Mapping):
        return {name: value for name, value in spec.items() if name in RunSpec.model_fields}
    return spec


class RunSummary(Answered):
    """`GET /v1/runs/{run}`."""

    run_id: str
    spec: Annotated[RunSpec, BeforeValidator(_without_unknown_fields)]
    status: RunStatus
    reason: str | None = None
    round: int
    """The last round opened; 0 before the first."""
    version: int
    """The last version made; 0 is the initial state."""
    tensors: dict[str, Digest]
    """The bundles of that version, by digest; an absent bundle is zeros."""
    members: int
    """Workers that have come and are there: neither lost nor revoked."""
    created_ms: Count
    ended_ms: Count | None = None


class RunStanding(Answered):
    """What a worker reads of `GET /v1/runs/{run}`: no more, so that a newer server's spec is no hindrance."""

    run_id: str
    status: RunStatus


class RoundSummary(Answered):
    """One row of `GET /v1/runs/{run}/rounds`."""

    round: int
    status: RoundStatus
    reason: str | None = None
    base_version: int
    version: int | None = None
    """The version this round made; None unless committed."""
    invited: int
    admitted: int
    declined: int
    lost: int = 0
    """Workers that had not answered and were not heard of, now or when the round ended."""
    refused: int = 0
    """Updates that were admitted, and found not good when they were to be combined."""
    opened_ms: Count
    deadline_ms: Count
    last_admitted_ms: Count | None = None
    """When the last update that it admitted came."""
    ended_ms: Count | None = None
    bytes_up: int
    """Of the updates that were received."""
    bytes_down: int
    """Of the tensors that trainers fetched while it was open; those of evaluators are not among them."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Evaluators' of the version made, averaged over evaluators; those of the workers' updates, averaged over
    workers, but their energy added up."""
    staleness: tuple[int, ...] = ()
    """In an asynchronous run: how many of its updates were 0, 1, 2 … versions stale."""


class Standing(StrEnum):
    """Where a worker stands in a round it was invited to."""

    ASKED = "asked"
    """Its answer is waited for."""
    RECEIVED = "received"
    COUNTED = "counted"
    NOT_COUNTED = "not-counted"
    DECLINED = "declined"
    REFUSED = "refused"
    """It sent an update that was not taken, and no other since."""
    LOST = "lost"
    """Nothing was heard of it any more."""
    LATE = "late"
    """The round ended without its answer."""


class WorkerInRound(Answered):
    """One row of `GET /v1/runs/{run}/rounds/{round}/workers`."""

    slot: int
    worker_id: str
    name: str
    assignment_id: str
    standing: Standing
    reason: str | None = None
    """Of a decline, in the worker's words; the error's code of a refusal; why an update was not counted."""
    received_ms: Count | None = None


class VersionSummary(Answered):
    """One row of `GET /v1/runs/{run}/versions`."""

    version: int
    tensors: dict[str, Digest]
    created_ms: Count
    collected: bool = False
    """Its tensors are no longer kept."""


# --- assignments and updates -------------------------------------------------------------------


class Assignment(Answered):
    """What one worker is asked to do in one round."""

    kind: Literal["train"] = "train"
    schema_version: SchemaVersion = 1
    assignment_id: Identifier
    run_id: Identifier
    round: Count
    version: Count
    slot: Count
    phase: str
    task: str
    tensors: Annotated[dict[str, Digest], Field(max_length=16)]
    """Global state to start from: {bundle: digest}; an absent bundle is zeros."""
    bundles: tuple[str, ...]
    """What the update must carry, in this order; each with the tensors of `params` in their order."""
    encodings: dict[str, str]
    optimizer: str
    settings: dict[str, Finite]
    """The optimizer's numbers for this round."""
    local_steps: Annotated[Int, Field(ge=1, le=1_000_000)]
    batch_size: Annotated[Int, Field(ge=1, le=1_000_000)]
    hessian_estimator: Label = GAUSS_NEWTON_BARTLETT
    """By which estimates of the Hessian are taken, where the optimizer takes any."""
    hessian_batch: Annotated[Int, Field(ge=1, le=1_000_000)] | None = None
    """So many examples of the step's mini-batch they are taken of. None: of all."""
    seed: Seed
    deadline_ms: Count
    heartbeat_s: Seconds = 20.0
    """A worker at work is to be heard of this often."""


class EvaluationAssignment(Answered):
    """A version that an evaluator is asked to measure; answered by `POST /v1/runs/{run}/metrics`."""

    kind: Literal["evaluate"] = "evaluate"
    schema_version: SchemaVersion = 1
    run_id: Identifier
    version: Count
    task: str
    tensors: Annotated[dict[str, Digest], Field(max_length=16)]
    heartbeat_s: Seconds = 20.0


AnyAssignment = Annotated[Assignment | EvaluationAssignment, Field(discriminator="kind")]
ANY_ASSIGNMENT: TypeAdapter[Assignment | EvaluationAssignment] = TypeAdapter(AnyAssignment)


class MetricsReport(Said):
    """`POST /v1/runs/{run}/metrics`, from an evaluator."""

    version: Count
    num_examples: Annotated[Count, Field(ge=1)]
    metrics: Annotated[Metrics, Field(max_length=32)]
    """Empty when the version cannot be measured, its loss being NaN for instance: it is not offered again."""


class Problem(Answered):
    """RFC 9457 `application/problem+json`."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    retryable: bool
    server_ms: Count | None = None
    """The server's time, where it is the device's that is wrong."""


def parse(message: type[M], body: bytes | str | Mapping[str, object]) -> M:
    """Validate a JSON body or decoded fields as `message`.

    Raises:
        InvalidMessage: naming the field and what was expected.
    """
    try:
        if isinstance(body, bytes | str):
            return message.model_validate_json(body)
        return message.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        why = first["msg"].removeprefix("Value error, ")
        raise InvalidMessage(f"{message.__name__}{'.' + where if where else ''}: {why}") from None
