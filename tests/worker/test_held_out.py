# SPDX-License-Identifier: Apache-2.0
"""Holding validation examples out of the training examples."""

import numpy as np
import pytest

from protocol.errors import InvalidUsage
from worker.tasks.held_out import hold_out


@pytest.mark.parametrize(("num_examples", "num_held_out"), [(100, 30), (2, 1), (10, 9)])
def test_every_example_is_trained_on_or_held_out_and_none_is_both(
    num_examples: int, num_held_out: int
) -> None:
    training, held_out = hold_out(num_examples, num_held_out, seed=0)
    assert held_out.size == num_held_out
    assert training.dtype == held_out.dtype == np.int64
    assert (np.diff(training) > 0).all() and (np.diff(held_out) > 0).all()
    assert np.array_equal(np.sort(np.concatenate([training, held_out])), np.arange(num_examples))


def test_the_same_seed_holds_out_the_same_examples_and_another_seed_others() -> None:
    first, again, other = (hold_out(100, 30, seed)[1] for seed in (4, 4, 5))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_held_out_examples_come_from_everywhere_and_not_from_one_end() -> None:
    _, held_out = hold_out(1_000, 100, seed=0)
    assert 30 < (held_out < 500).sum() < 70


@pytest.mark.parametrize("num_held_out", [-1, 0, 10, 11])
def test_neither_side_may_be_empty(num_held_out: int) -> None:
    with pytest.raises(InvalidUsage, match=rf"^{num_held_out} of 10 examples .* expected from 1 to 9$"):
        hold_out(10, num_held_out, seed=0)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(InvalidUsage, match="seed -1"):
        hold_out(10, 3, seed=-1)
