# SPDX-License-Identifier: Apache-2.0
"""Coordinate-wise median: the middle value; of an even number, the mean of the two in the middle.

Whatever fewer than half of the workers send, each coordinate stays within what the others sent. Of two
workers it is their mean.

Source: Yin et al. 2018 (arXiv 1803.01498), Definition 1. As there, weights are not used: a worker that
claims many examples must not weigh more in what protects from it.
"""

import numpy as np

from ps_service.combiners.base import Rows, Values

_BLOCK = 4096
"""Coordinates sorted at a time: they fit a processor's cache. It changes no bit."""


def median(rows: Rows, weights: Values) -> Values:
    """The median of the rows, shape (n,); `weights` are ignored."""
    num_rows, num_coordinates = rows.shape
    result = np.empty(num_coordinates, dtype=np.float32)
    for start in range(0, num_coordinates, _BLOCK):
        columns = np.ascontiguousarray(rows[:, start : start + _BLOCK].T)
        columns.sort(axis=1)
        low, high = columns[:, (num_rows - 1) // 2], columns[:, num_rows // 2]
        # halves are added, for a sum of two might overflow
        result[start : start + _BLOCK] = (
            high if num_rows % 2 else low * np.float32(0.5) + high * np.float32(0.5)
        )
    # −0 becomes 0: where both occur, sorting may leave either in the middle
    result += np.float32(0)
    return result
