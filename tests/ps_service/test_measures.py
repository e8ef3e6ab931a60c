# SPDX-License-Identifier: Apache-2.0
"""What is measured of whole rows: near the truth, and exact in whatever order it is added."""

import numpy as np
import pytest

from ps_service.combiners.measures import BLOCK, inner_products, squared_distances, squared_lengths


def rows_of(num_rows, num_coordinates=BLOCK, scale=1.0):
    values = np.random.default_rng(7).normal(scale=scale, size=(num_rows, num_coordinates))
    return values.astype(np.float32)


def test_products_by_hand():
    """(3, 4)·(3, 4) = 25, (3, 4)·(−1, 2) = 5, (−1, 2)·(−1, 2) = 5; 25 + 5 − 2·5 = 20 = 4² + 2²."""
    rows = np.array([[3, 4], [-1, 2]], dtype=np.float32)
    np.testing.assert_array_equal(inner_products(rows), [[25, 5], [5, 5]])
    np.testing.assert_array_equal(squared_lengths(rows), [25, 5])
    np.testing.assert_array_equal(squared_distances(inner_products(rows)), [[0, 20], [20, 0]])


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-42, 1e35])
def test_products_are_those_of_the_rows_to_a_millionth(scale):
    rows = rows_of(5, scale=scale)
    exact = rows.astype(np.float64) @ rows.astype(np.float64).T
    tolerance = 1e-6 * np.sqrt(np.outer(exact.diagonal(), exact.diagonal())).max()
    np.testing.assert_allclose(inner_products(rows), exact, rtol=0, atol=tolerance)
    np.testing.assert_allclose(squared_lengths(rows), exact.diagonal(), rtol=1e-6)


@pytest.mark.parametrize("num_coordinates", [0, 1, 31, BLOCK])
def test_no_order_of_the_coordinates_changes_a_bit(num_coordinates):
    """So none in which a BLAS, its threads or a processor's lanes may add them."""
    rows = rows_of(9, num_coordinates)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(num_coordinates)
        assert inner_products(rows[:, order]).tobytes() == inner_products(rows).tobytes()
        assert squared_lengths(rows[:, order]).tobytes() == squared_lengths(rows).tobytes()


def test_the_largest_sum_a_block_can_make_is_exact():
    """Just below a power of two a value is rounded to 2^20, the largest whole number there is."""
    rows = np.full((2, BLOCK), np.nextafter(np.float32(1), np.float32(0)))
    rows[1] *= -1
    np.testing.assert_array_equal(inner_products(rows), [[BLOCK, -BLOCK], [-BLOCK, BLOCK]])


def test_a_wild_row_makes_nobody_elses_distances_coarser():
    rows = rows_of(4)
    calm = squared_distances(inner_products(rows))[1:, 1:]
    rows[0] = 3e38
    np.testing.assert_array_equal(squared_distances(inner_products(rows))[1:, 1:], calm)


def test_equal_rows_are_at_distance_zero():
    rows = np.tile(rows_of(1), (3, 1))
    np.testing.assert_array_equal(squared_distances(inner_products(rows)), np.zeros((3, 3)))
