# SPDX-License-Identifier: Apache-2.0
"""What each combiner costs, beside a plain float32 mean of the same rows.

    python -m benchmarks.combiners                              K = 8 and 32, 2 million parameters
    python -m benchmarks.combiners --workers 32 --parameters 25000000

Rows lie in memory and are taken in the chunks of an aggregation: once to be combined and, where whole
updates are weighed, once before. GB/s are those of all workers' float32 values, counted once.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from fed_sophia.output import Fields, output_for
from protocol.messages import TensorSpec
from ps_service.aggregation import CHUNK_BYTES
from ps_service.combiners import COMBINERS
from ps_service.combiners.base import Rows
from ps_service.combining import ReadRows, chunks, decided_weights

HELD = 1_000_000
"""Coordinates that lie in memory; more parameters are the same ones again."""


def measure(workers: Sequence[int], num_parameters: int) -> list[Fields]:
    """What each combiner took, in the order of the menu, behind the plain mean."""
    found: list[Fields] = []
    for num_workers in workers:
        rows = np.random.default_rng(0).normal(size=(num_workers, HELD)).astype(np.float32)
        works: dict[str, Callable[[], None]] = {"float32 mean": partial(plain_mean, rows, num_parameters)}
        works |= {name: partial(combine_all, name, rows, num_parameters) for name in COMBINERS}
        for name, work in works.items():
            wall_s = seconds(work)
            gb_per_s = num_workers * num_parameters * 4 / 1e9 / wall_s
            found.append({"workers": num_workers, "combiner": name, "wall_s": wall_s, "gb_per_s": gb_per_s})
    return found


def table(found: list[Fields]) -> str:
    return "\n".join(
        ["  K  combiner              GB/s         s"]
        + ["{workers:>3}  {combiner:<17} {gb_per_s:>8.2f}  {wall_s:>8.2f}".format_map(row) for row in found]
    )


def combine_all(name: str, rows: Rows, num_parameters: int) -> None:
    """Weigh and combine so many parameters."""
    combiner, width = COMBINERS[name], chunk_elements(len(rows))
    read = reader(rows, width)
    uniform = np.full(len(rows), 1 / len(rows), dtype=np.float32)
    model = [TensorSpec(name="w", shape=(num_parameters,))]
    weights = decided_weights(combiner, uniform, model, read, width)
    for start, stop in chunks(num_parameters, width):
        combiner.combine(read("w", start, stop), weights)


def plain_mean(rows: Rows, num_parameters: int) -> None:
    """numpy's own mean of the same chunks; its bits depend on them."""
    width = chunk_elements(len(rows))
    read = reader(rows, width)
    for start, stop in chunks(num_parameters, width):
        read("w", start, stop).mean(axis=0)


def reader(rows: Rows, width: int) -> ReadRows:
    """Copies, as a store gives them; beyond the coordinates held it begins again."""

    def read(_: str, start: int, stop: int) -> Rows:
        first = start % (rows.shape[1] - 2 * width)
        return rows[:, first : first + stop - start].copy()

    return read


def chunk_elements(num_workers: int) -> int:
    return max(4096, CHUNK_BYTES // 4 // num_workers)


def seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.combiners", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 32], help="rows that are combined")
    parser.add_argument("--parameters", type=int, default=2_000_000, help="of the model")
    parser.add_argument("--json", action="store_true", help="JSON lines for machines; the last is a summary")
    return parser.parse_args()


def main() -> int:
    given = _arguments()
    found = measure(given.workers, given.parameters)
    output_for(given.json).summary(table(found), {"combiners": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
