# SPDX-License-Identifier: Apache-2.0
"""What the peers carry: the arrays, what a worker makes of them, and what must come of it.

The peers' own processes load this file too, in environments that hold NumPy and not what we need.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

ARRAYS = 20
COLUMNS = 100
SMALLEST_MB = 4 * ARRAYS * COLUMNS / 1e6
"""Of a row in each array."""

Arrays = list[npt.NDArray[np.float32]]


def model(mb: float) -> Arrays:
    """`mb` · 10^6 bytes, to within a row of each array; noise, so that nothing compresses them."""
    generator = np.random.default_rng(0)
    rows = round(mb * 1e6 / 4 / ARRAYS / COLUMNS)
    return [generator.standard_normal((rows, COLUMNS), dtype=np.float32) for _ in range(ARRAYS)]


def update(arrays: Sequence[npt.NDArray[np.float32]], index: int) -> tuple[Arrays, int]:
    """(what worker `index` returns, its weight): arrays plus index + 1, and index + 1."""
    return [array + np.float32(index + 1) for array in arrays], index + 1


def largest_error(
    arrays: Sequence[npt.NDArray[np.float32]],
    initial: Sequence[npt.NDArray[np.float32]],
    workers: int,
    rounds: int,
) -> float:
    """The largest distance of any element from the exact weighted mean after so many rounds.

    A round adds Σ i·i / Σ i over i = 1 … n, which is (2n + 1) / 3.

    Raises:
        ValueError: the arrays are not as many, or not as large, as the initial ones.
    """
    added = rounds * (2 * workers + 1) / 3
    errors = [
        np.abs(got.astype(np.float64).reshape(first.shape) - (first.astype(np.float64) + added)).max()
        for got, first in zip(arrays, initial, strict=True)
    ]
    return float(max(errors))


def write_report(path: Path, fields: dict[str, object]) -> None:
    """Say at once, and wholly, what the server has found."""
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(fields), encoding="utf-8")
    unfinished.replace(path)
