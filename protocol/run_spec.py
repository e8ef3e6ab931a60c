# SPDX-License-Identifier: Apache-2.0
"""What defines a training job: model, algorithm, and the policies of its rounds."""

import math
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import FailFast, Field, ValidationInfo, model_validator

from protocol.algorithms import SENT_PARAMS, Algorithm, algorithm_named
from protocol.encodings import encoding_named
from protocol.errors import FedSophiaError
from protocol.fields import (
    Digest,
    Finite,
    Identifier,
    Int,
    Label,
    MetricName,
    PerBundle,
    Said,
    SchemaVersion,
    Seed,
    Word,
)
from protocol.header import (
    DEFAULT_LIMITS,
    MAX_DIMENSIONS,
    MAX_TENSOR_BYTES,
    entry_bytes_at_most,
    num_elements,
)
from protocol.run_encodings import check_encodings
from protocol.run_estimates import check_estimates

_STORED: dict[str, object] = {}
"""The context in which a stored spec is read, known by its identity."""
DEFAULT_CONCURRENCY = 4
"""Times `cohort_size`: updates are so many versions stale, on average, if all workers take alike."""

Workers = Annotated[Int, Field(ge=1, le=100_000)]
Seconds = Annotated[Finite, Field(gt=0, le=30 * 86_400)]


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


class AdaptiveDeadline(Said):
    """The length of a round follows those that went before: median + k·MAD of the last committed ones.

    MAD is the median absolute deviation. Until three rounds are committed, `deadline_s` holds.
    """

    spread: Annotated[Finite, Field(ge=0, le=1_000)] = 4.0
    """k."""
    floor_s: Seconds = 1.0
    ceiling_s: Seconds = 3_600.0

    @model_validator(mode="after")
    def _floor_below_ceiling(self) -> Self:
        if self.floor_s > self.ceiling_s:
            raise ValueError(f"floor_s {self.floor_s:g} is larger than ceiling_s {self.ceiling_s:g}")
        return self


class AsynchronousRounds(Said):
    """Workers train without waiting for each other; every `cohort_size` updates that arrive make a version,
    if they are of `quorum` different workers.

    An update is made from the version that was the newest when its worker began: its *staleness* is how many
    versions have been made since. Source: FedBuff, Nguyen et al. 2022 (arXiv 2106.06639).
    """

    max_staleness: Annotated[Int, Field(ge=0, le=1_000)] = 20
    """An update that is staler is refused."""
    staleness_exponent: Annotated[Finite, Field(ge=0, le=10)] = 0.5
    """a: an update of staleness s weighs (1 + s)^−a, relative to the others of its version."""
    concurrency: Workers | None = None
    """So many workers train at the same time; None means four times `cohort_size`."""


class TargetMetric(Said):
    """The run ends with the first version whose metric, as evaluators report it, reaches a value."""

    name: MetricName
    at_least: Finite | None = None
    at_most: Finite | None = None
    wait_s: Seconds = 60.0
    """How long the next round waits for the metric of the version before it."""

    @model_validator(mode="after")
    def _one_direction(self) -> Self:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("expected one of at_least and at_most")
        return self

    def reached(self, value: float) -> bool:
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is not None and value <= self.at_most


class BestVersions(Said):
    """The versions whose metric, as evaluators report it, is best."""

    metric: MetricName
    order: Literal["highest", "lowest"] = "highest"
    count: Annotated[Int, Field(ge=1, le=1_000)] = 1


class Retention(Said):
    """Which versions and updates keep their tensors; what is written down of them is kept for ever.

    The current version always keeps them. `last`, `every` and `best` add up.
    """

    last: Annotated[Int, Field(ge=1, le=1_000_000)] = 10
    """So many of the newest versions."""
    every: Annotated[Int, Field(ge=1, le=1_000_000)] | None = None
    """Each version whose number is a multiple of this, 0 included."""
    best: BestVersions | None = None
    update_rounds: Annotated[Int, Field(ge=0, le=1_000_000)] = 0
    """The workers' updates of so many rounds, the newest that have ended."""


class RunSpec(Said):
    """Everything that defines a training job. `POST /v1/runs`."""

    schema_version: SchemaVersion = 1
    name: Identifier
    task: Label
    """Workers that serve this task are invited. The server never looks behind the name."""
    algorithm: Label
    hyperparameters: Annotated[dict[Label, Int | Finite | Word | None], Field(max_length=64)] = Field(
        default_factory=dict
    )
    model: Annotated[tuple[TensorSpec, ...], Field(min_length=1, max_length=5_000), FailFast()]
    params_digest: Digest
    seed: Seed = 0
    rounds: Annotated[Int, Field(ge=1, le=1_000_000)]
    """Versions to make; an abandoned round makes none."""
    local_steps: Annotated[Int, Field(ge=1, le=1_000_000)] = 10
    batch_size: Annotated[Int, Field(ge=1, le=1_000_000)] = 32
    cohort_size: Workers | None = None
    """Updates that a round collects. Give this or `cohort_fraction`."""
    cohort_fraction: Annotated[Finite, Field(gt=0, le=1)] | None = None
    """The same as a share of the workers that may be invited, rounded up."""
    min_workers: Workers | None = None
    """The run waits until so many workers have come; None means `cohort_size`."""
    over_selection: Annotated[Finite, Field(ge=1, le=10)] = 1.0
    """Workers invited for each update that is to be collected: the first to answer are kept."""
    quorum: Workers
    """Fewest updates that make a version once the deadline has passed; in an asynchronous run, fewest workers
    whose updates make one."""
    deadline_s: Seconds = 600.0
    adaptive_deadline: AdaptiveDeadline | None = None
    max_extensions: Annotated[Int, Field(ge=0, le=1_000)] = 0
    """How often a round without a quorum at its deadline gets its length again before it is abandoned."""
    asynchronous: AsynchronousRounds | None = None
    """None holds rounds synchronously: what comes after a round has closed is refused."""
    max_abandoned_rounds: Annotated[Int, Field(ge=1, le=1_000)] = 10
    """After so many abandoned rounds in a row the run fails."""
    target_metric: TargetMetric | None = None
    max_duration_s: Annotated[Finite, Field(gt=0, le=366 * 86_400)] | None = None
    """The run ends with the round that is open so long after its first round began."""
    retention: Retention = Retention()
    weighting: Weighting = Weighting.UNIFORM
    combiners: PerBundle = Field(default_factory=dict)
    """{bundle: combiner}; what is left out is the algorithm's own choice."""
    encodings: PerBundle = Field(default_factory=dict)
    """{bundle: encoding of its upload; of `params` and normalised bundles, of their way down}; or f32."""
    presigned: bool = False
    """Whether workers exchange tensors with the object store itself, by pre-signed URLs."""
    max_delta_norm: Annotated[Finite, Field(ge=1e-20, le=1e9)] | None = None
    """A longer `delta` (L2, over all its tensors) is scaled to this length before anything is made of it."""

    @classmethod
    def stored(cls, text: str) -> Self:
        """Read the spec of a run that exists: what is no longer begun may still be looked at, and ended."""
        return cls.model_validate_json(text, context=_STORED)

    @model_validator(mode="after")
    def _fits_together(self, info: ValidationInfo) -> Self:
        try:
            algorithm = algorithm_named(self.algorithm)
            algorithm.parse(self.hyperparameters).optimizer_settings(self.local_steps)
        except FedSophiaError as error:
            raise ValueError(error.detail) from None
        self._check_rounds()
        self._check_bundles(algorithm)
        if info.context is not _STORED:
            self._check_means_something(algorithm)
        return self

    def _check_means_something(self, algorithm: Algorithm) -> None:
        """What is refused for its sake alone: it could be held, but would not do what it is named for."""
        if self.asynchronous is not None and algorithm.synchronous_because is not None:
            raise ValueError(
                f"asynchronous: {self.algorithm} cannot be, because {algorithm.synchronous_because}"
            )
        others = {name for bundle, name in self.combiners.items() if name != algorithm.combiners.get(bundle)}
        if others and algorithm.combiners_because is not None:
            raise ValueError(
                f"combiners: {self.algorithm} has its own, because {algorithm.combiners_because}"
            )

    def _check_rounds(self) -> None:
        if (self.cohort_size is None) == (self.cohort_fraction is None):
            raise ValueError("expected one of cohort_size and cohort_fraction")
        if self.cohort_fraction is not None and self.min_workers is None:
            raise ValueError("min_workers: needed beside cohort_fraction")
        if self.asynchronous is not None:
            self._check_asynchronous()
        cohort = self.cohort_of(self.workers_awaited)
        if self.quorum > cohort:
            name = "cohort_size" if self.cohort_size is not None else "the smallest cohort,"
            raise ValueError(f"quorum {self.quorum} is larger than {name} {cohort}")

    def _check_asynchronous(self) -> None:
        if self.cohort_size is None:
            raise ValueError("asynchronous: needs cohort_size")
        if self.over_selection != 1:
            raise ValueError("asynchronous: over_selection has no meaning there")
        if self.adaptive_deadline is not None:  # a round may be full the moment it is opened
            raise ValueError("asynchronous: adaptive_deadline has no meaning there")

    def _check_bundles(self, algorithm: Algorithm) -> None:
        check_estimates(algorithm, algorithm.parse(self.hyperparameters).hessian_estimate(), self.batch_size)
        names = [tensor.name for tensor in self.model]
        if len(set(names)) != len(names):
            raise ValueError("model: a tensor name stands twice")
        if unknown := set(self.combiners) - set(algorithm.combiners):
            raise ValueError(f"combiners: {self.algorithm} sends no bundle {min(unknown)!r}")
        check_encodings(self.encodings, algorithm, self.hyperparameters, self.local_steps)
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

    @property
    def workers_awaited(self) -> int:
        """How many workers must have come before the first round."""
        return self.min_workers or self.cohort_size or 1

    def cohort_of(self, eligible: int) -> int:
        """How many updates a round collects when so many workers may be invited."""
        if self.cohort_fraction is not None:
            return max(1, math.ceil(self.cohort_fraction * eligible - 1e-9))
        assert self.cohort_size is not None
        if self.asynchronous is not None or not eligible:  # a worker may send many of its updates
            return self.cohort_size
        return min(self.cohort_size, eligible)

    @property
    def concurrency(self) -> int:
        """How many workers train at the same time in an asynchronous run."""
        assert self.asynchronous is not None and self.cohort_size is not None
        return self.asynchronous.concurrency or DEFAULT_CONCURRENCY * self.cohort_size

    def encoding_of(self, bundle: str) -> str:
        """How an update carries this bundle."""
        return self.encodings.get(bundle, "f32")

    def state_encoding_of(self, bundle: str) -> str:
        """How a version holds this bundle."""
        if bundle == SENT_PARAMS:
            return self.encoding_of("params")
        return self.encoding_of(bundle) if bundle in algorithm_named(self.algorithm).normalised else "f32"

    @property
    def has_sent_params(self) -> bool:
        """Whether workers are given other bytes than those of a version's `params`."""
        return self.encoding_of("params") != "f32"

    def payload_bytes(self, bundles: tuple[str, ...]) -> int:
        """Payload of an update that carries these bundles, without header and padding."""
        return sum(
            encoding_named(self.encoding_of(bundle)).size_bytes(tensor.num_elements)
            for bundle in bundles
            for tensor in self.model
        )
