# SPDX-License-Identifier: Apache-2.0
"""Laws that every combiner obeys."""

import numpy as np
import pytest

from ps_service.combiners import COMBINERS
from ps_service.combiners.trimmed_mean import trimmed

EVERY_COMBINER = pytest.mark.parametrize("name", COMBINERS)
COORDINATES = 97


def rows_of(num_workers, seed=0):
    return np.random.default_rng(seed).normal(size=(num_workers, COORDINATES)).astype(np.float32)


def uniform(num_workers):
    return np.full(num_workers, 1 / num_workers, dtype=np.float32)


def combine(name, rows, weights=None):
    """`rows` may be overwritten by a combiner: give it a copy."""
    return COMBINERS[name](rows.copy(), uniform(len(rows)) if weights is None else weights)


@EVERY_COMBINER
def test_one_workers_result_is_itself(name):
    rows = rows_of(1)
    np.testing.assert_array_equal(combine(name, rows), rows[0])


@EVERY_COMBINER
@pytest.mark.parametrize("num_workers", [2, 3, 10, 33])
def test_equal_rows_combine_to_that_row(name, num_workers):
    row = rows_of(1)[0]
    np.testing.assert_allclose(combine(name, np.tile(row, (num_workers, 1))), row, rtol=2e-6)


@EVERY_COMBINER
@pytest.mark.parametrize("num_workers", [2, 3, 10, 33])
def test_permuting_workers_changes_nothing_beyond_float_rounding(name, num_workers):
    """Float addition does not commute over three terms: the bits are fixed by taking rows in slot order."""
    rows = rows_of(num_workers)
    weights = np.random.default_rng(1).dirichlet(np.ones(num_workers)).astype(np.float32)
    order = np.random.default_rng(2).permutation(num_workers)
    np.testing.assert_allclose(
        combine(name, rows[order], weights[order]), combine(name, rows, weights), rtol=0, atol=2e-6
    )


def test_the_trimmed_mean_sorts_and_so_forgets_the_order_of_workers_to_the_bit():
    rows = rows_of(33)
    np.testing.assert_array_equal(combine("trimmed_mean", rows[::-1]), combine("trimmed_mean", rows))


@EVERY_COMBINER
@pytest.mark.parametrize("factor", [2.0, -1.0, 0.25, 0.0])
def test_scaling_every_row_scales_the_result(name, factor):
    """Exactly, for powers of two: they change no mantissa."""
    rows = rows_of(12)
    scaled = combine(name, rows * np.float32(factor))
    expected = combine(name, rows) * np.float32(factor)
    if factor < 0 and name == "trimmed_mean":  # turned round, the kept values are added from the other end
        np.testing.assert_allclose(scaled, expected, rtol=0, atol=1e-6)
    else:
        np.testing.assert_array_equal(scaled, expected)


@EVERY_COMBINER
@pytest.mark.parametrize("num_workers", range(1, 41))
def test_every_split_of_the_coordinates_gives_the_same_bits(name, num_workers):
    rows = rows_of(num_workers, seed=num_workers)
    whole = combine(name, rows).tobytes()
    for width in (1, 2, 3, 7, 8, 16, 31, 64, COORDINATES):
        chunks = [combine(name, rows[:, at : at + width]) for at in range(0, COORDINATES, width)]
        assert np.concatenate(chunks).tobytes() == whole, width


@EVERY_COMBINER
def test_no_coordinates_combine_to_none(name):
    result = combine(name, np.empty((3, 0), dtype=np.float32))
    assert (result.shape, result.dtype) == ((0,), np.float32)


def test_the_mean_weighs_by_its_weights():
    rows = np.array([[1, 10], [2, 20]], dtype=np.float32)
    np.testing.assert_array_equal(
        combine("mean", rows, np.array([0.25, 0.75], dtype=np.float32)), np.array([1.75, 17.5])
    )


@pytest.mark.parametrize("num_workers", [3, 5, 9, 10, 21])
def test_wild_values_never_pass_the_trimmed_mean(num_workers):
    rows = np.abs(rows_of(num_workers))
    for wild in (1e30, -1e30):
        spoilt = rows.copy()
        spoilt[: trimmed(num_workers)] = wild
        assert np.abs(combine("trimmed_mean", spoilt)).max() <= rows.max()


def test_the_trimmed_mean_by_hand():
    """Of 1, 2, 3, 100 the ends 1 and 100 are dropped, max(⌊4/10⌋, 1) = 1 each: (2 + 3)/2 = 2.5."""
    rows = np.array([[100], [2], [1], [3]], dtype=np.float32)
    assert combine("trimmed_mean", rows)[0] == 2.5
    assert [trimmed(k) for k in (1, 2, 3, 19, 20, 40)] == [0, 0, 1, 1, 2, 4]
