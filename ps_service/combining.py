# SPDX-License-Identifier: Apache-2.0
"""What each update counts for, decided before coordinates are combined.

A combiner that weighs whole updates gets one pass over all coordinates of the bundle. They are read in
chunks and measured in blocks; blocks begin where a tensor begins, whatever the chunk, and what is measured
of them is added in their order, so no chunk size changes a bit. Memory is O(chunk · workers).
"""

from collections.abc import Callable, Iterator, Sequence

from protocol.messages import TensorSpec
from ps_service.combiners import Combiner
from ps_service.combiners.base import Measures, Rows, Values
from ps_service.combiners.measures import BLOCK

ReadRows = Callable[[str, int, int], Rows]
"""(tensor, start, stop) → rows of those coordinates, shape (K, stop − start), in slot order."""


def decided_weights(
    combiner: Combiner, weights: Values, model: Sequence[TensorSpec], read: ReadRows, chunk_elements: int
) -> Values:
    """What each row counts for, shape (K,): `weights`, unless the combiner weighs the rows itself.

    Args:
        weights: as the run says, sum 1.
        chunk_elements: coordinates read at a time; made whole blocks here.
    """
    if combiner.weighing is None:
        return weights
    width = -(-chunk_elements // BLOCK) * BLOCK
    total: Measures | None = None
    for tensor in model:
        for start, stop in chunks(tensor.num_elements, width):
            rows = read(tensor.name, start, stop)
            for first, last in chunks(stop - start, BLOCK):
                measured = combiner.weighing.measure(rows[:, first:last])
                total = measured if total is None else total + measured
    assert total is not None  # a model has tensors
    return combiner.weighing.decide(total, weights)


def chunks(num_elements: int, chunk_elements: int) -> Iterator[tuple[int, int]]:
    """Ranges that cover a tensor; an empty tensor has one empty range."""
    for start in range(0, max(num_elements, 1), chunk_elements):
        yield start, min(start + chunk_elements, num_elements)
