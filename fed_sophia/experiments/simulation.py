# SPDX-License-Identifier: Apache-2.0
"""A synchronous run without a wire: the pure steps of server and workers, one round after the other.

Who is invited, the assignments and their seeds, the local steps, the combiners and the server step are those
of a deployment; what is left out is all that happens between them. Worker i has slot i, as where a swarm's
workers have all come before the first round. What comes out is that of a run over the wire, to rounding of
float32: there workers train one by one, here stacked.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from fed_sophia.experiments.attacks import Forgers
from protocol.algorithms import SENT_PARAMS, algorithm_named, name_in_message
from protocol.bound import DeltaBound
from protocol.codec import Bundle, encode_bundle, require_finite
from protocol.encodings import encoding_named
from protocol.errors import NegativeHessian, NotFinite, OutsideBound, QuorumMissing
from protocol.messages import Assignment, RunSpec
from ps_service.assigning import Part, assignment, given_to_train
from ps_service.combining import chunks
from ps_service.round_step import Chunk, RoundStep
from ps_service.sampling import sample
from ps_service.value_rules import check_update_values
from worker.local_state import Kept
from worker.stacked import Job, StackedTrainer
from worker.training import Trained
from worker.update import as_received, pack

_CHUNK_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Sent:
    """What is known of one update beside its values."""

    slot: int
    local_steps: int
    num_examples: int
    staleness: int = 0


class Simulation:
    """A run that is advanced round by round."""

    def __init__(
        self,
        spec: RunSpec,
        params: Bundle,
        trainer: StackedTrainer,
        workers: int,
        forgers: Forgers | None = None,
        *,
        admission: bool = False,
    ) -> None:
        """Args:
        workers: as many as the trainer has rows of examples.
        forgers: those of the workers that are dishonest.
        admission: whether updates are judged before they count, as a server does. Honest ones pass.
        """
        self._spec = spec
        self._trainer = trainer
        self._workers = workers
        self._forgers = forgers
        self._admission = admission
        self._algorithm = algorithm_named(spec.algorithm)
        self.state: dict[str, Bundle] = {"params": params}
        """The bundles of the newest version; an absent one is zeros."""
        self.version = 0
        self._digests = {"params": "params@0"}
        self._kept: dict[int, Kept | None] = {}
        self._held: dict[int, frozenset[str]] = {}
        """{slot: what this worker has of its last assignment}."""
        self._traffic = _Traffic(spec, params)
        self.bytes_up = 0
        self.bytes_down = 0
        """What workers have sent and fetched so far, as tensor messages."""

    def advance(self, stop: threading.Event | None = None) -> None:
        """Hold one round.

        Args: stop: set from another thread, it ends the round within a local step.

        Raises:
            Stopped: `stop` was set.
            QuorumMissing: too few updates were admitted to make a version.
            FedSophiaError: a worker or the server could not do its part, as when a loss is NaN.
        """
        number = self.version + 1
        cohort = self._spec.cohort_of(self._workers)
        slots = sample(self._spec.seed, number, tuple(range(self._workers)), cohort)
        if self._forgers is not None and not self._forgers.attack.sends:
            slots = tuple(slot for slot in slots if slot not in self._forgers.slots)
        if not slots:
            raise QuorumMissing(f"nobody invited sends an update; the quorum is {self._spec.quorum}")
        jobs = [Job(slot, self._assignment(slot, number), self._kept.get(slot)) for slot in slots]
        self._count_downloads(slots)
        given = {name: self.state[name] for name in self._algorithm.sent_down if name in self.state}
        given["params"] = self._started_from
        trained = self._trainer.train(jobs, given, stop)
        self.bytes_up += len(jobs) * self._traffic.update_bytes(jobs[0].assignment)
        for job, each in zip(jobs, trained, strict=True):
            self._kept[job.worker] = each.kept
        trained = [self._travelled(job.assignment, each) for job, each in zip(jobs, trained, strict=True)]
        updates = self._admitted(self._sent(dict(zip(slots, trained, strict=True)), number))
        changed = self._combined(list(updates), list(updates.values()), partial=cohort < self._workers)
        if "params" in changed and self._spec.has_sent_params:
            changed[SENT_PARAMS] = {
                name: self._as_stored(SENT_PARAMS, values) for name, values in changed["params"].items()
            }
        self.version = number
        self.state |= changed
        self._digests |= {bundle: f"{bundle}@{number}" for bundle in changed}

    def _assignment(self, slot: int, number: int) -> Assignment:
        part = Part(
            assignment_id=f"{number}-{slot}",
            run_id="simulation",
            round=number,
            version=self.version,
            slot=slot,
            turn=number,
            deadline_ms=0,
            heartbeat_s=1.0,
        )
        return assignment(self._spec, part, {})

    def _travelled(self, assigned: Assignment, update: Trained) -> Trained:
        """An update after its encodings, as a server reads it."""
        if set(assigned.encodings.values()) == {"f32"}:
            return update
        received = as_received(assigned, self._started_from, update)
        return replace(update, bundles={bundle: dict(tensors) for bundle, tensors in received.items()})

    def _count_downloads(self, slots: Sequence[int]) -> None:
        """A worker fetches the bundles that it does not hold from its last assignment."""
        named = frozenset(given_to_train(self._spec, self._digests).values())
        for slot in slots:
            lacking = named - self._held.get(slot, frozenset())
            self.bytes_down += sum(self._traffic.state_bytes(name.partition("@")[0]) for name in lacking)
            self._held[slot] = named

    def _sent(self, made: dict[int, Trained], number: int) -> dict[int, Trained]:
        """{slot: what arrives of it}: of a forger what it makes of its own."""
        if self._forgers is None:
            return made
        forged = self._forgers.forged(
            {slot: each.bundles for slot, each in made.items()},
            self._started_from,
            self._bound(self._spec.local_steps),
            (self._spec.seed, number),
        )
        return {slot: replace(each, bundles=forged[slot]) for slot, each in made.items()}

    def _admitted(self, sent: dict[int, Trained]) -> dict[int, Trained]:
        """What no rule refuses; the round goes on with that, as on a server."""
        if not self._admission:
            return sent
        admitted = {slot: each for slot, each in sent.items() if self._passes(each)}
        if len(admitted) < self._spec.quorum:
            raise QuorumMissing(f"{len(admitted)} updates were admitted; the quorum is {self._spec.quorum}")
        return admitted

    def _passes(self, update: Trained) -> bool:
        bound = self._bound(update.local_steps)
        for bundle, tensors in update.bundles.items():
            encoding = encoding_named(self._spec.encoding_of(bundle))
            for name, values in tensors.items():
                start = partial(self._started_from.__getitem__, name)
                try:
                    check_update_values(
                        bundle, name, values, bound=bound, started_from=start, encoding=encoding
                    )
                except (NotFinite, OutsideBound, NegativeHessian):
                    return False
        return True

    def _bound(self, steps: int) -> DeltaBound | None:
        hyperparameters = self._algorithm.parse(self._spec.hyperparameters)
        return hyperparameters.bound(steps, self._spec.local_steps)

    def _combined(
        self, slots: Sequence[int], trained: Sequence[Trained], *, partial: bool
    ) -> dict[str, Bundle]:
        """The bundles that the round changes."""
        bundles = tuple(trained[0].bundles)
        senders = [
            Sent(slot, each.local_steps, each.num_examples) for slot, each in zip(slots, trained, strict=True)
        ]
        round_step = RoundStep(
            self._spec, dict.fromkeys(bundles, senders), partial=partial, workers=self._workers
        )

        def rows(bundle: str, name: str, start: int, stop: int) -> Chunk:
            flat = [each.bundles[bundle][name].reshape(-1)[start:stop] for each in trained]
            return np.stack(flat)

        changed: dict[str, dict[str, Chunk]] = {}
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused by name
            decided = round_step.decide(rows, _CHUNK_ELEMENTS)
            for tensor in self._spec.model:
                pieces: dict[str, list[Chunk]] = {}
                for start, stop in chunks(tensor.num_elements, _CHUNK_ELEMENTS):
                    state = {
                        bundle: self._state(bundle, tensor.name, start, stop)
                        for bundle in self._algorithm.global_state
                    }
                    received = {bundle: rows(bundle, tensor.name, start, stop) for bundle in bundles}
                    given = self._started_from[tensor.name].reshape(-1)[start:stop]
                    starts = [given] * len(trained)
                    for bundle, values in round_step.apply(decided, state, received, starts).items():
                        pieces.setdefault(bundle, []).append(values)
                for bundle, parts in pieces.items():
                    values = np.concatenate(parts).reshape(tensor.shape)
                    require_finite(f"the next {bundle}: {tensor.name}", values)
                    changed.setdefault(bundle, {})[tensor.name] = self._as_stored(bundle, values)
        return dict(changed)

    @property
    def _started_from(self) -> Bundle:
        """The parameters as workers are given them."""
        return self.state.get(SENT_PARAMS, self.state["params"])

    def _as_stored(self, bundle: str, values: Chunk) -> Chunk:
        """The values of a state bundle as a version holds them."""
        encoding = encoding_named(self._spec.state_encoding_of(bundle))
        if encoding.name == "f32":
            return values
        stored = np.empty(values.size, dtype=np.float32)
        encoding.decode(encoding.encode(values), stored)
        return stored.reshape(values.shape)

    def _state(self, bundle: str, name: str, start: int, stop: int) -> Chunk:
        if bundle not in self.state:
            return np.zeros(stop - start, dtype=np.float32)
        return self.state[bundle][name].reshape(-1)[start:stop]


class _Traffic:
    """How many bytes messages take; that follows from the shapes of the model, whatever the values."""

    def __init__(self, spec: RunSpec, params: Bundle) -> None:
        self._spec = spec
        self._zeros = {name: np.zeros_like(values) for name, values in params.items()}
        self._updates: dict[tuple[str, ...], int] = {}
        self._states: dict[str, int] = {}

    def update_bytes(self, assigned: Assignment) -> int:
        if assigned.bundles not in self._updates:
            bundles = dict.fromkeys(assigned.bundles, self._zeros)
            nothing = Trained(bundles, None, num_examples=1, local_steps=1, metrics={})
            header, _ = pack(assigned, self._zeros, nothing)
            self._updates[assigned.bundles] = header.size_bytes
        return self._updates[assigned.bundles]

    def state_bytes(self, bundle: str) -> int:
        if bundle not in self._states:
            encoding = self._spec.state_encoding_of(bundle)
            message = encode_bundle(name_in_message(bundle), self._zeros, encoding)
            self._states[bundle] = sum(part.nbytes for part in message)
        return self._states[bundle]
