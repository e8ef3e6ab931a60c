# SPDX-License-Identifier: Apache-2.0
"""A whole run as one message: what it is, what became of its rounds, which tensors its versions have.

It is `run.json` of an archive and the body of `POST /v1/runs/import`. It holds rounds that have ended
and nothing of workers, servers or run ids: the same run, exported twice or from two servers, says the
same. What a run needs to go on (its round, its version, how long its rounds took) follows from the rounds.
"""

from collections.abc import Iterable
from typing import Annotated, Self

from pydantic import FailFast, Field, TypeAdapter, model_validator

from protocol.algorithms import SENT_PARAMS, algorithm_named
from protocol.errors import InvalidMessage
from protocol.fields import Count, Digest, Label, Metrics, Said, SchemaVersion
from protocol.messages import RoundStatus, RunStatus, parse
from protocol.run_spec import RunSpec

MAX_DOCUMENT_BYTES = 64 * 1024**2
"""Longest document that is written or read: the history of some 100 000 rounds."""

MAX_FIELDS = 1_000
"""Of one object in a document; ours have some twenty."""
_SHORT_BYTES = 64 * 1024
_ANY: TypeAdapter[object] = TypeAdapter(object)

Reason = Annotated[str, Field(max_length=10_000)]


class ArchivedRound(Said):
    """A round that has ended; its fields mean what they mean in `RoundSummary`."""

    round: Annotated[Count, Field(ge=1)]
    status: RoundStatus
    reason: Reason | None = None
    base_version: Count
    version: Count | None = None
    invited: Count
    admitted: Count
    declined: Count
    lost: Count = 0
    opened_ms: Count
    deadline_ms: Count
    last_admitted_ms: Count | None = None
    ended_ms: Count
    bytes_up: Count
    bytes_down: Count
    metrics: Metrics = Field(default_factory=dict)
    staleness: Annotated[tuple[Count, ...], Field(max_length=1_001)] = ()

    @model_validator(mode="after")
    def _ended_one_way(self) -> Self:
        made = self.base_version + 1 if self.status is RoundStatus.COMMITTED else None
        if not self.status.ended:
            raise ValueError(f"round {self.round}: expected one that has ended, got {self.status.value}")
        if self.version != made:
            raise ValueError(f"round {self.round}: {self.status.value}, expected version {made}")
        if made is None and not self.reason:
            raise ValueError(f"round {self.round}: abandoned, and no reason is given")
        return self


class ArchivedVersion(Said):
    """A version of the global state."""

    version: Count
    tensors: Annotated[dict[Label, Digest], Field(max_length=16)]
    """{bundle: digest}; an absent bundle is zeros."""
    created_ms: Count


class RunArchive(Said):
    """`run.json` of an archive, and `POST /v1/runs/import`."""

    schema_version: SchemaVersion = 1
    spec: RunSpec
    status: RunStatus
    """What it was when it was exported. A run that had not ended is paused after its import."""
    reason: Reason | None = None
    created_ms: Count
    ended_ms: Count | None = None
    rounds: Annotated[tuple[ArchivedRound, ...], Field(max_length=1_000_000), FailFast()]
    """All that had ended, from the first; a round that was open is not here and will be held anew."""
    versions: Annotated[tuple[ArchivedVersion, ...], Field(min_length=1, max_length=1_000_001), FailFast()]
    """All, from the first parameters, also those whose tensors are kept nowhere."""
    included: Annotated[tuple[Count, ...], Field(max_length=1_000_001), FailFast()]
    """The versions whose tensors travel with this document, ascending."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        self._check_rounds()
        self._check_versions()
        self._check_end()
        return self

    @property
    def version(self) -> int:
        """The last version."""
        return self.versions[-1].version

    @property
    def abandoned_in_a_row(self) -> int:
        """How many of the last rounds made no version."""
        made = [round_.round for round_ in self.rounds if round_.version is not None]
        return len(self.rounds) - (made[-1] if made else 0)

    def digests_of(self, versions: Iterable[int]) -> dict[str, int]:
        """{digest: the first of these versions that has it}, in the order in which they have them."""
        digests: dict[str, int] = {}
        for version in versions:
            for digest in self.versions[version].tensors.values():
                digests.setdefault(digest, version)
        return digests

    def _check_rounds(self) -> None:
        version = 0
        for number, round_ in enumerate(self.rounds, start=1):
            if round_.round != number:
                raise ValueError(f"rounds: expected round {number}, got round {round_.round}")
            if round_.base_version != version:
                raise ValueError(
                    f"round {number}: expected base_version {version}, got {round_.base_version}"
                )
            version = version if round_.version is None else round_.version
        if version != len(self.versions) - 1:
            raise ValueError(f"versions: the rounds made version {version}, {len(self.versions)} are here")

    def _check_versions(self) -> None:
        bundles = algorithm_named(self.spec.algorithm).global_state
        if self.spec.has_sent_params:
            bundles = (*bundles, SENT_PARAMS)
        for number, version in enumerate(self.versions):
            if version.version != number:
                raise ValueError(f"versions: expected version {number}, got version {version.version}")
            if "params" not in version.tensors:
                raise ValueError(f"version {number}: has no params")
            unknown = set(version.tensors).difference(bundles)
            if unknown:
                raise ValueError(f"version {number}: {self.spec.algorithm} keeps no bundle {min(unknown)!r}")
        if self.versions[0].tensors["params"] != self.spec.params_digest:
            raise ValueError("version 0: its params are not those that the spec names")
        if list(self.included) != sorted(set(self.included)) or max(self.included, default=0) > self.version:
            raise ValueError(f"included: expected ascending numbers from 0 to {self.version}")

    def _check_end(self) -> None:
        if self.version > self.spec.rounds:
            raise ValueError(f"versions: {self.version} were made, the spec asks for {self.spec.rounds}")
        if self.status.ended != (self.ended_ms is not None):
            raise ValueError(f"ended_ms: {self.status.value}, got {self.ended_ms}")
        if self.status.ended:
            return
        if self.reason is not None:
            raise ValueError(f"reason: {self.status.value}, expected none")
        if self.version == self.spec.rounds or self.abandoned_in_a_row >= self.spec.max_abandoned_rounds:
            raise ValueError(f"status: {self.status.value}, and the rounds have brought the run to its end")


def read_document(text: bytes) -> RunArchive:
    """Validate a document whoever wrote it, in memory of a small multiple of its length.

    Raises:
        InvalidMessage: it is none; only the first thing wrong with it is looked for.
    """
    if len(text) > _SHORT_BYTES:
        _check_fields(text)
    return parse(RunArchive, text)


def _check_fields(text: bytes) -> None:
    """Refuse objects with very many fields: validation would keep an error for each that is unknown."""
    try:
        to_visit = [_ANY.validate_json(text)]
    except ValueError:
        return  # validation says what is wrong
    while to_visit:
        value = to_visit.pop()
        if isinstance(value, dict):
            if len(value) > MAX_FIELDS:
                raise InvalidMessage(f"an object has {len(value)} fields; at most {MAX_FIELDS} are read")
            value = list(value.values())
        if isinstance(value, list):
            to_visit.extend(each for each in value if isinstance(each, dict | list))
