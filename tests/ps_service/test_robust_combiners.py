# SPDX-License-Identifier: Apache-2.0
"""Each robust combiner by hand, against a reference, and at its edges: few rows, ties, equal rows."""

import importlib
import importlib.util

import numpy as np
import pytest

from ps_service.combiners.geometric_median import geometric_median
from ps_service.combiners.krum import krum
from ps_service.combiners.measures import inner_products, squared_lengths
from ps_service.combiners.median import median
from ps_service.combiners.multi_krum import multi_krum
from ps_service.combiners.norm_bounded import norm_bounded


def points(*rows):
    """Rows of few coordinates; a number is a row of one."""
    return np.array([np.atleast_1d(row) for row in rows], dtype=np.float32)


def cloud(num_rows, num_coordinates=40, seed=0):
    return np.random.default_rng(seed).normal(size=(num_rows, num_coordinates)).astype(np.float32)


def uniform(rows):
    return np.full(len(rows), 1 / len(rows), dtype=np.float32)


def chosen(rule, rows):
    """Slots that count, all of them alike."""
    weights = rule(inner_products(rows), uniform(rows))
    slots = np.flatnonzero(weights)
    np.testing.assert_array_equal(weights[slots], np.float32(1 / len(slots)))
    return slots.tolist()


# median


def test_the_median_by_hand():
    """Of 9, 1, 4 it is 4; of 9, 1, 4, 6 it is (4 + 6)/2 = 5; of 9, 1 it is 5."""
    assert median(points(9, 1, 4), uniform([0] * 3)) == 4
    assert median(points(9, 1, 4, 6), uniform([0] * 4)) == 5
    assert median(points(9, 1), uniform([0] * 2)) == 5


@pytest.mark.parametrize("num_rows", range(1, 34))
def test_the_median_is_numpys(num_rows):
    rows = cloud(num_rows, 9000, num_rows)
    np.testing.assert_array_equal(median(rows, uniform(rows)), np.median(rows, axis=0))


def test_the_median_of_huge_values_is_no_overflow():
    np.testing.assert_array_equal(median(points(3e38, 3e38), uniform([0] * 2)), np.float32(3e38))


def test_the_median_of_zeros_is_plus_zero_whatever_their_signs():
    for rows in (points(0.0, -0.0, -0.0), points(-0.0, -0.0), points(-0.0)):
        assert not np.signbit(median(rows, uniform(rows))).any()


# krum


def test_krum_by_hand():
    """Of 0, 1, 3, 4.5, 100, the f = 1 worker may be wild: scores are of the 5 − 1 − 2 = 2 nearest.

    0: 1 + 9 = 10; 1: 1 + 4 = 5; 3: 2.25 + 4 = 6.25; 4.5: 2.25 + 12.25 = 14.5; 100: > 18000.
    """
    rows = points(4.5, 100, 0, 1, 3)
    assert chosen(krum, rows) == [3]
    assert chosen(multi_krum, rows) == [3, 4]


@pytest.mark.parametrize("rule", [krum, multi_krum])
def test_few_rows_share_where_nothing_tells_them_apart(rule):
    assert chosen(rule, points(7)) == [0]
    assert chosen(rule, points(7, 100)) == [0, 1]
    assert chosen(rule, points(7, 100, 8)) == [0, 2]


@pytest.mark.parametrize("rule", [krum, multi_krum])
def test_rows_that_tie_share(rule):
    """0, 1, 2, 3: the inner ones have 1 + 1, the outer ones 1 + 4."""
    assert chosen(rule, points(0, 1, 2, 3)) == [1, 2]


@pytest.mark.parametrize("rule", [krum, multi_krum])
def test_equal_rows_share_and_leave_out_the_others(rule):
    assert chosen(rule, points(5, 2, 5, 9, 5, 5)) == [0, 2, 4, 5]


@pytest.mark.parametrize("num_rows", [4, 5, 8, 21])
def test_krum_is_what_its_definition_gives(num_rows):
    """Distances and sums in float64, row by row; f is the greatest number with 2f + 2 < K."""
    rows = cloud(num_rows, seed=num_rows).astype(np.float64)
    f = max(f for f in range(num_rows) if 2 * f + 2 < num_rows)
    scores = []
    for i, row in enumerate(rows):
        distances = sorted(((row - other) ** 2).sum() for j, other in enumerate(rows) if j != i)
        scores.append(sum(distances[: num_rows - f - 2]))
    best = np.argsort(scores)
    rows = rows.astype(np.float32)
    assert chosen(krum, rows) == [best[0]]
    assert chosen(multi_krum, rows) == sorted(best[: num_rows - f - 2])


# geometric median


def test_the_geometric_median_of_a_cross_is_where_its_arms_meet():
    """The diagonals of a convex quadrangle meet in its geometric median: here in (0, 0), by 1:2 and 1:3.

    (1, 0) and (−2, 0), (0, 1) and (0, −3): weights of each pair are as 2:1 and 3:1, pairs as Σ 1/d.
    Σ 1/d = 1 + 1/2 + 1 + 1/3 = 17/6; so 6/17, 3/17, 6/17, 2/17.
    """
    rows = points((1, 0), (-2, 0), (0, 1), (0, -3))
    weights = geometric_median(inner_products(rows), uniform(rows))
    np.testing.assert_allclose(weights, np.array([6, 3, 6, 2]) / 17, rtol=1e-5)
    np.testing.assert_allclose(weights @ rows, 0, atol=1e-5)


@pytest.mark.parametrize("num_wild", [0, 1, 4])
@pytest.mark.parametrize("num_rows", [3, 4, 9, 20])
def test_the_geometric_median_has_the_least_sum_of_distances_that_a_minimiser_finds(
    require_part, num_rows, num_wild
):
    require_part(importlib.util.find_spec("scipy") is not None, "SciPy")
    optimize = importlib.import_module("scipy.optimize")
    num_wild = min(num_wild, (num_rows - 1) // 2)
    rows = cloud(num_rows, 5, num_rows)
    rows[:num_wild] *= 1e4
    exact = rows.astype(np.float64)

    def total_distance(point):
        return np.linalg.norm(exact - point, axis=1).sum()

    found = optimize.minimize(
        total_distance,
        np.median(exact, axis=0),
        method="Nelder-Mead",
        options={"maxiter": 20_000, "xatol": 1e-9},
    )
    ours = geometric_median(inner_products(rows), uniform(rows)).astype(np.float64) @ exact
    assert total_distance(ours) <= found.fun * (1 + 1e-6)


def test_the_geometric_median_of_few_rows():
    for rows, expected in (
        (points(7), [1]),
        (points(7, 100), [0.5, 0.5]),
        (points(7, 7), [0.5, 0.5]),
        (points(7, 100, 7), [0.5, 0, 0.5]),
        (points(0, 0), [0.5, 0.5]),
    ):
        weights = geometric_median(inner_products(rows), uniform(rows))
        np.testing.assert_allclose(weights, expected, atol=1e-7)


def test_the_geometric_median_on_a_line_is_the_median():
    rows = points(5, -3, 0, 11, 2)
    weights = geometric_median(inner_products(rows), uniform(rows))
    assert weights @ rows == pytest.approx(2, abs=1e-3)


def test_rows_at_the_end_of_float32_do_not_hide_the_others():
    rows = cloud(9)
    weights = geometric_median(inner_products(rows), uniform(rows))
    rows[:4] = 3e38
    spoilt = geometric_median(inner_products(rows), uniform(rows))
    assert spoilt[:4].sum() < 1e-37
    assert np.linalg.norm(spoilt[4:] @ rows[4:]) < 3 * np.linalg.norm(weights[4:] @ rows[4:])


# norm bounded


def test_norm_bounded_by_hand():
    """Lengths 5, 1, 10: the median is 5, so the third counts half of its weight."""
    rows = points((3, 4), (0, 1), (6, -8))
    weights = np.array([0.5, 0.25, 0.25], dtype=np.float32)
    np.testing.assert_array_equal(norm_bounded(squared_lengths(rows), weights), [0.5, 0.25, 0.125])


@pytest.mark.parametrize(
    ("rows", "factors"),
    [
        (points(7), [1]),
        (points(7, 1), [1 / 7, 1]),
        (points(4, 1, 8, 2), [0.5, 1, 0.25, 1]),
        (points(0, 0, 3), [1, 1, 0]),
        (points(0), [1]),
        (points(-3, 3, 3), [1, 1, 1]),
    ],
)
def test_the_lower_median_is_the_bound_of_an_even_number(rows, factors):
    weights = uniform(rows)
    np.testing.assert_allclose(norm_bounded(squared_lengths(rows), weights), weights * factors, rtol=1e-6)


@pytest.mark.parametrize("num_rows", [2, 3, 8, 13])
def test_half_of_all_rows_however_long_and_heavy_do_not_stretch_the_result(num_rows):
    rows = cloud(num_rows)
    longest = np.linalg.norm(rows, axis=1).max()
    num_wild = num_rows // 2
    rows[:num_wild] *= 1e20
    weights = np.where(np.arange(num_rows) < num_wild, np.float32(1 / num_wild), np.float32(0))
    result = norm_bounded(squared_lengths(rows), weights) @ rows
    assert np.linalg.norm(result) <= longest * (1 + 1e-5)
