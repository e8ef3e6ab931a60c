# SPDX-License-Identifier: Apache-2.0
"""One round's arithmetic: what workers sent and the state it is added to → the state that changes. PURE.

Any range of coordinates can be given at a time, and no chunk size changes a bit. Where the values come from
and where they go is not known here: the server reads and writes tensor messages (`aggregation.py`), a
simulation has arrays in memory.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt

from protocol.algorithms import algorithm_named
from protocol.messages import RunSpec, Weighting
from ps_service.combiners import COMBINERS
from ps_service.combiners.base import RowsInTurn
from ps_service.combiners.measures import squared_lengths
from ps_service.combining import ReadRows, Senders, decided_weights, measured
from ps_service.server_steps import SERVER_STEPS, StepContext
from ps_service.staleness import weight

Chunk = npt.NDArray[np.float32]
ReadBundle = Callable[[str, str, int, int], Chunk]
"""(bundle, tensor, start, stop) → rows of those coordinates, one an update, shape (K, stop − start).

They are a copy: whoever asked may overwrite them.
"""


class Contribution(Protocol):
    """What is to be known of one update beside its values."""

    @property
    def slot(self) -> int: ...

    @property
    def local_steps(self) -> int: ...

    @property
    def num_examples(self) -> int: ...

    @property
    def staleness(self) -> int: ...


@dataclass(frozen=True)
class Decided:
    """What is settled of whole updates before their coordinates are combined."""

    weights: Mapping[str, Chunk]
    """{bundle: what each worker's row counts for}."""
    scales: Chunk | None
    """What each delta is multiplied by, shape (K,): 1, or less if it is too long; None where no length is."""


class RoundStep:
    """A closed round's combiners and server step, and who sent what."""

    def __init__(
        self,
        spec: RunSpec,
        sent: Mapping[str, Sequence[Contribution]],
        *,
        partial: bool,
        share: float = 1.0,
        workers: int | None = None,
    ) -> None:
        """Args:
        sent: {bundle: the updates that bring it, in slot order, at least one}.
        partial, share, workers: as in `StepContext`.
        """
        self._model = spec.model
        self._max_delta_norm = spec.max_delta_norm
        self._algorithm = algorithm = algorithm_named(spec.algorithm)
        self._server_step = SERVER_STEPS[algorithm.server_step]
        self._senders = {
            bundle: Senders([update.slot for update in updates], _shares(spec, updates))
            for bundle, updates in sent.items()
        }
        self._combiners = {
            bundle: COMBINERS[spec.combiners.get(bundle, algorithm.combiners[bundle])] for bundle in sent
        }
        hyperparameters = algorithm.parse(spec.hyperparameters)
        steps = tuple(update.local_steps for update in sent.get("delta", ()))
        self._context = StepContext(
            hyperparameters=hyperparameters.for_server_step(),
            bounds=tuple(hyperparameters.bound(done, spec.local_steps) for done in steps),
            partial=partial,
            share=share,
            steps=steps,
            workers=workers,
        )

    def decide(self, read: ReadBundle, chunk_elements: int, threads: int = 0) -> Decided:
        """Settle what is the same at every coordinate.

        Args:
            chunk_elements: coordinates read at a time, where whole updates are measured.
            threads: that read and measure them, beside the caller's.
        """
        scales = self._scales(read, chunk_elements, threads)
        weights = {
            bundle: decided_weights(
                combiner,
                self._senders[bundle].weights,
                self._model,
                self._reader_of_workers(read, bundle, scales),
                chunk_elements,
                threads,
            )
            for bundle, combiner in self._combiners.items()
        }
        return Decided(weights, scales)

    def _scales(self, read: ReadBundle, chunk_elements: int, threads: int) -> Chunk | None:
        """What brings each delta to the length that the run allows; updates, not workers, are measured."""
        if self._max_delta_norm is None or "delta" not in self._senders:
            return None
        read_deltas = partial(read, "delta")
        squares = measured(squared_lengths, self._model, read_deltas, chunk_elements, threads)
        return scales_to(self._max_delta_norm, squares)

    def _reader_of_workers(self, read: ReadBundle, bundle: str, scales: Chunk | None) -> ReadRows:
        def read_workers(name: str, start: int, stop: int) -> Chunk:
            rows = _scaled(bundle, read(bundle, name, start, stop), scales)
            return self._senders[bundle].one_row_each(rows)

        return read_workers

    def apply(
        self,
        decided: Decided,
        state: Mapping[str, Chunk],
        received: Mapping[str, Chunk],
        starts: Iterable[Chunk],
        in_turn: Mapping[str, RowsInTurn] | None = None,
    ) -> dict[str, Chunk]:
        """Give the changed state bundles of some coordinates, {bundle: (n,)}.

        Args:
            state: {bundle: (n,)}, all that the algorithm keeps.
            received: {bundle: (K, n)}; may be overwritten.
            starts: for each delta, the parameters it was made from, shape (n,).
            in_turn: the bundles that are not in `received`; those alone that `may_come_in_turn`.
        """
        combined = {
            bundle: self._combine_in_turn(bundle, rows, decided) for bundle, rows in (in_turn or {}).items()
        }
        received = {bundle: _scaled(bundle, rows, decided.scales) for bundle, rows in received.items()}
        derived = self._server_step.derive(received, starts, self._context)
        for bundle, rows in (dict(received) | dict(derived)).items():
            # what is derived shares its combiner and what was decided: all of it is of the same workers
            sent = self._algorithm.derived.get(bundle, bundle)
            of_workers = self._senders[sent].one_row_each(rows)
            combined[bundle] = self._combiners[sent].combine(of_workers, decided.weights[sent])
        return dict(self._server_step.apply(state, combined, self._context))

    def may_come_in_turn(self, bundle: str) -> bool:
        """Whether nothing but its combiner looks at a bundle's rows, and that at one after another."""
        return (
            self._combiners[bundle].in_turn is not None
            and self._senders[bundle].sent_one_each
            and not self._algorithm.derived
            and not (bundle == "delta" and self._max_delta_norm is not None)
        )

    def _combine_in_turn(self, bundle: str, rows: RowsInTurn, decided: Decided) -> Chunk:
        combine = self._combiners[bundle].in_turn
        assert combine is not None
        return combine(rows, decided.weights[bundle])


def scales_to(longest: float, squared_lengths: npt.NDArray[np.float64]) -> Chunk:
    """min(1, longest/‖x_k‖) for rows of these squared lengths, shape (K,)."""
    lengths = np.sqrt(squared_lengths)
    scales = np.ones(len(lengths))
    np.divide(longest, lengths, out=scales, where=lengths > longest)
    return scales.astype(np.float32)


def _scaled(bundle: str, rows: Chunk, scales: Chunk | None) -> Chunk:
    """Rows of `delta` in the length that is allowed, in place; 1 changes no bit. Other rows as they are."""
    if bundle == "delta" and scales is not None:
        rows *= scales[:, np.newaxis]
    return rows


def _shares(spec: RunSpec, updates: Sequence[Contribution]) -> npt.NDArray[np.float64]:
    """What each update weighs relative to the others, shape (K,).

    A worker that sent several has as much say as one that sent one.
    """
    of_slot = Counter(update.slot for update in updates)
    shares = np.array([weight(spec, update.staleness) / of_slot[update.slot] for update in updates])
    if spec.weighting is Weighting.NUM_EXAMPLES:
        shares *= np.array([update.num_examples for update in updates], dtype=np.float64)
    return shares
