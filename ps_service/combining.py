# SPDX-License-Identifier: Apache-2.0
"""One row a worker, and what each row counts for: what is settled before coordinates are combined.

A combiner counts rows, so a worker that sent several updates in an asynchronous round must not have several:
they become one, their mean by what they weigh.

A combiner that weighs whole updates gets one pass over all coordinates of the bundle. They are read in
chunks and measured in blocks; blocks begin where a tensor begins, whatever the chunk, and what is measured
of them is added in their order, so no chunk size changes a bit. Memory is O(chunk · workers).
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.messages import TensorSpec
from ps_service.combiners import Combiner
from ps_service.combiners.base import Measure, Measures, Rows, Values
from ps_service.combiners.measures import BLOCK
from ps_service.in_order import in_order

ReadRows = Callable[[str, int, int], Rows]
"""(tensor, start, stop) → rows of those coordinates, shape (K, stop − start), in slot order."""


class Senders:
    """Which updates are of one worker, and what they weigh."""

    def __init__(self, slots: Sequence[int], shares: npt.NDArray[np.float64]) -> None:
        """Take, for each update in slot order, its worker's slot and what it weighs beside the others."""
        self._shares = shares
        self._updates_of: dict[int, list[int]] = defaultdict(list)
        for index, slot in enumerate(slots):
            self._updates_of[slot].append(index)
        of_workers = np.array([shares[updates].sum() for updates in self._updates_of.values()])
        self.weights: Values = (of_workers / of_workers.sum()).astype(np.float32)
        """One a worker, in slot order; they sum to 1 (to float32 rounding)."""

    @property
    def sent_one_each(self) -> bool:
        return len(self._updates_of) == len(self._shares)

    def one_row_each(self, rows: Rows) -> Rows:
        """Rows of updates → rows of workers; `rows` themselves where nobody sent two."""
        if self.sent_one_each:
            return rows
        merged = np.zeros((len(self._updates_of), rows.shape[1]), dtype=np.float32)
        for row, updates in zip(merged, self._updates_of.values(), strict=True):
            parts = self._shares[updates] / self._shares[updates].sum()
            for update, part in zip(updates, parts.astype(np.float32), strict=True):
                row += part * rows[update]
        return merged


def decided_weights(
    combiner: Combiner,
    weights: Values,
    model: Sequence[TensorSpec],
    read: ReadRows,
    chunk_elements: int,
    threads: int = 0,
) -> Values:
    """What each row counts for, shape (K,): `weights`, unless the combiner weighs the rows itself.

    Args:
        weights: as the run says, sum 1.
        chunk_elements, threads: as in `measured`.
    """
    if combiner.weighing is None:
        return weights
    measures = measured(combiner.weighing.measure, model, read, chunk_elements, threads)
    return combiner.weighing.decide(measures, weights)


def measured(
    measure: Measure, model: Sequence[TensorSpec], read: ReadRows, chunk_elements: int, threads: int = 0
) -> Measures:
    """What is to be known of whole rows: that of their blocks, added in order.

    Args:
        chunk_elements: coordinates read at a time; made whole blocks here.
        threads: that read and measure, beside the caller's.
    """
    width = -(-chunk_elements // BLOCK) * BLOCK
    total: Measures | None = None

    def of_blocks(part: Part) -> list[Measures]:
        rows = read(part.name, part.start, part.stop)
        return [measure(rows[:, first:last]) for first, last in chunks(rows.shape[1], BLOCK)]

    def add(measures: list[Measures]) -> None:
        nonlocal total
        for of_block in measures:
            total = of_block if total is None else total + of_block

    in_order(parts(model, width), of_blocks, add, threads)
    assert total is not None  # a model has tensors
    return total


@dataclass(frozen=True)
class Part:
    """Some coordinates of one tensor: start … stop − 1."""

    tensor: int
    """Its place in the model."""
    name: str
    start: int
    stop: int


def parts(model: Sequence[TensorSpec], chunk_elements: int) -> Iterator[Part]:
    """All coordinates of a model, tensor after tensor."""
    for index, tensor in enumerate(model):
        for start, stop in chunks(tensor.num_elements, chunk_elements):
            yield Part(index, tensor.name, start, stop)


def chunks(num_elements: int, chunk_elements: int) -> Iterator[tuple[int, int]]:
    """Ranges that cover a tensor; an empty tensor has one empty range."""
    for start in range(0, max(num_elements, 1), chunk_elements):
        yield start, min(start + chunk_elements, num_elements)
