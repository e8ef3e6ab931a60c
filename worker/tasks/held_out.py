# SPDX-License-Identifier: Apache-2.0
"""Validation examples: held out of the training examples, so that settings are never chosen by a test set."""

import numpy as np
import numpy.typing as npt

from protocol.errors import InvalidUsage

Rows = npt.NDArray[np.int64]


def hold_out(num_examples: int, num_held_out: int, seed: int) -> tuple[Rows, Rows]:
    """Choose the examples to tune by; give (rows to train on, rows held out).

    Args:
        num_examples: training examples there are; evaluation examples have no part in this.
        seed: 0 or more; the same one holds out the same rows.

    Returns:
        Two ascending arrays; every row from 0 to `num_examples` - 1 is in exactly one of them.

    Raises:
        InvalidUsage: one of the two would be empty, or the seed is negative.
    """
    if not 0 < num_held_out < num_examples:
        raise InvalidUsage(
            f"{num_held_out} of {num_examples} examples to hold out: expected from 1 to {num_examples - 1}"
        )
    if seed < 0:
        raise InvalidUsage(f"seed {seed} to hold examples out by: expected 0 or more")
    shuffled = np.random.default_rng(seed).permutation(num_examples).astype(np.int64)
    return np.sort(shuffled[num_held_out:]), np.sort(shuffled[:num_held_out])
