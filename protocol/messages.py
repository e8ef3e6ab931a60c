# SPDX-License-Identifier: Apache-2.0
"""The JSON messages of the control plane, all frozen.

Times are UTC integer milliseconds. Unknown fields are refused in what a caller sends and ignored in
what a server answers, so that a newer server can say more. Each message that is stored or that
opens an exchange carries `schema_version`; those of a released version load for ever.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from protocol.algorithms import MIN_REFRESH_BATCH, algorithm_named
from protocol.encodings import ENCODINGS, encoding_named
from protocol.errors import FedSophiaError, InvalidMessage
from protocol.header import (
    DEFAULT_LIMITS,
    MAX_DIMENSIONS,
    MAX_TENSOR_BYTES,
    entry_bytes_at_most,
    num_elements,
)

M = TypeVar("M", bound=BaseModel)

PROTOCOL_VERSION = 1

# Strict: JSON's `true`, `"3"` and `3.0` are no integers here, so that one spec has one way to be said.
Int = Annotated[int, Field(strict=True)]
Count = Annotated[Int, Field(ge=0, lt=2**53)]
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
SchemaVersion = Annotated[Int, Field(ge=1, le=1)]
"""The one version of each message there is so far."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Label = Annotated[str, Field(min_length=1, max_length=128)]
Seed = Annotated[Int, Field(ge=0, lt=2**63)]
MetricName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Metrics = dict[MetricName, Finite]
PerBundle = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=64)]], Field(max_length=16)
]
"""{bundle: a name}."""


class Said(BaseModel):
    """What a caller sends: unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Answered(BaseModel):
    """What the server answers: unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


# --- enrolment and credentials -----------------------------------------------------------------


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
    revoked_ms: Count | None = None


# --- runs --------------------------------------------------------------------------------------


class TensorSpec(Said):
    """One tensor of the model, as every message of the run must carry it."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    shape: Annotated[tuple[Annotated[Int, Field(ge=0, lt=2**40)], ...], Field(max_length=MAX_DIMENSIONS)]
    dtype: Literal["float32"] = "float32"

    @model_validator(mode="after")
    def _fits_in_one_payload(self) -> Self:
        if 4 * num_elements([max(extent, 1) for extent in self.shape]) > MAX_TENSOR_BYTES:
            raise ValueError(f"{self.name}: a tensor holds at most {MAX_TENSOR_BYTES} bytes. Split it.")
        return self

    @property
    def num_elements(self) -> int:
        return num_elements(self.shape)


class Weighting(StrEnum):
    """How the mean weighs the workers of a round."""

    UNIFORM = "uniform"
    NUM_EXAMPLES = "num_examples"


class RunSpec(Said):
    """Everything that defines a training job. `POST /v1/runs`."""

    schema_version: SchemaVersion = 1
    name: Identifier
    task: Label
    """Workers that serve this task are invited. The server never looks behind the name."""
    algorithm: Label
    hyperparameters: Annotated[dict[Label, Int | Finite | None], Field(max_length=64)] = Field(
        default_factory=dict
    )
    model: Annotated[tuple[TensorSpec, ...], Field(min_length=1, max_length=5_000)]
    params_digest: Digest
    seed: Seed = 0
    rounds: Annotated[Int, Field(ge=1, le=1_000_000)]
    """Versions to make; an abandoned round makes none."""
    local_steps: Annotated[Int, Field(ge=1, le=1_000_000)] = 10
    batch_size: Annotated[Int, Field(ge=1, le=1_000_000)] = 32
    cohort_size: Annotated[Int, Field(ge=1, le=100_000)]
    """Workers invited to each round. The run waits until so many have come."""
    quorum: Annotated[Int, Field(ge=1)]
    """Fewest updates that make a version once the deadline has passed."""
    deadline_s: Annotated[Finite, Field(gt=0, le=30 * 86_400)] = 600.0
    max_abandoned_rounds: Annotated[Int, Field(ge=1, le=1_000)] = 10
    """After so many abandoned rounds in a row the run fails."""
    weighting: Weighting = Weighting.UNIFORM
    combiners: PerBundle = Field(default_factory=dict)
    """{bundle: combiner}; what is left out is the algorithm's own choice."""
    encodings: PerBundle = Field(default_factory=dict)
    """{bundle: encoding of its upload}; f32 unless said."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        try:
            algorithm = algorithm_named(self.algorithm)
            algorithm.parse(self.hyperparameters).optimizer_settings(self.local_steps)
        except FedSophiaError as error:
            raise ValueError(error.detail) from None
        if "hessian" in algorithm.combiners and self.batch_size < MIN_REFRESH_BATCH:
            raise ValueError(
                f"batch_size {self.batch_size}: {self.algorithm} estimates the Hessian over at least "
                f"{MIN_REFRESH_BATCH} examples"
            )
        if self.quorum > self.cohort_size:
            raise ValueError(f"quorum {self.quorum} is larger than cohort_size {self.cohort_size}")
        names = [tensor.name for tensor in self.model]
        if len(set(names)) != len(names):
            raise ValueError("model: a tensor name stands twice")
        for field, values in (("combiners", self.combiners), ("encodings", self.encodings)):
            unknown = set(values) - set(algorithm.combiners)
            if unknown:
                raise ValueError(f"{field}: {self.algorithm} sends no bundle {sorted(unknown)[0]!r}")
        if not set(self.encodings.values()) <= set(ENCODINGS):
            raise ValueError(f"encodings: expected some of {', '.join(ENCODINGS)}")
        header_bytes = 64 + sum(
            entry_bytes_at_most(bundle, tensor.name, tensor.shape, self.encoding_of(bundle))
            for bundle in algorithm.combiners
            for tensor in self.model
        )
        if header_bytes > DEFAULT_LIMITS.header_bytes:
            raise ValueError(
                f"model: the header of an update would take up to {header_bytes} bytes; "
                f"at most {DEFAULT_LIMITS.header_bytes} are accepted"
            )
        return self

    def encoding_of(self, bundle: str) -> str:
        return self.encodings.get(bundle, "f32")

    def payload_bytes(self, bundles: tuple[str, ...]) -> int:
        """Payload of an update that carries these bundles, without header and padding."""
        return sum(
            encoding_named(self.encoding_of(bundle)).size_bytes(tensor.num_elements)
            for bundle in bundles
            for tensor in self.model
        )


class RunStatus(StrEnum):
    """Where a run stands."""

    WAITING = "waiting"
    RUNNING = "running"
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
    """Workers that have a slot in this run."""
    created_ms: Count
    ended_ms: Count | None = None


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
    opened_ms: Count
    deadline_ms: Count
    ended_ms: Count | None = None
    bytes_up: int
    bytes_down: int
    metrics: dict[str, float] = Field(default_factory=dict)
    """Evaluators' metrics of the version made, averaged over evaluators; train_loss of the workers."""


class VersionSummary(Answered):
    """One row of `GET /v1/runs/{run}/versions`."""

    version: int
    tensors: dict[str, Digest]
    created_ms: Count


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
    seed: Seed
    deadline_ms: Count


class EvaluationAssignment(Answered):
    """A version that an evaluator is asked to measure; answered by `POST /v1/runs/{run}/metrics`."""

    kind: Literal["evaluate"] = "evaluate"
    schema_version: SchemaVersion = 1
    run_id: Identifier
    version: Count
    task: str
    tensors: Annotated[dict[str, Digest], Field(max_length=16)]


AnyAssignment = Annotated[Assignment | EvaluationAssignment, Field(discriminator="kind")]
ANY_ASSIGNMENT: TypeAdapter[Assignment | EvaluationAssignment] = TypeAdapter(AnyAssignment)


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


class UploadOffer(Answered):
    """The answer to a declaration whose body is still missing."""

    upload_url: str
    """Path on this server. `HEAD` tells the offset, `PUT` sends the whole body."""
    offset: int


class Outcome(StrEnum):
    """What became of an update. It ends as COUNTED or NOT_COUNTED, never as both."""

    PENDING = "pending"
    COUNTED = "counted"
    NOT_COUNTED = "not-counted"


class Receipt(Answered):
    """The server has the update on durable storage: it is not lost and not counted twice."""

    assignment_id: str
    digest: Digest
    received_ms: Count
    outcome: Outcome
    version: int | None = None
    """The version it was counted in."""
    reason: str | None = None
    """Why it was not counted."""


class Decline(Said):
    """`POST /v1/assignments/{id}/decline`."""

    reason: Annotated[str, Field(min_length=1, max_length=500)]


class Heartbeat(Said):
    """`POST /v1/workers/{worker}/heartbeat`: still there; the tasks replace those of the enrolment."""

    tasks: Annotated[tuple[Label, ...], Field(min_length=1, max_length=64)] | None = None


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
        raise InvalidMessage(f"{message.__name__}{'.' + where if where else ''}: {first['msg']}") from None
