# SPDX-License-Identifier: Apache-2.0
"""Laws that every combiner obeys, and those that all which protect from wild workers obey."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.messages import TensorSpec
from ps_service.combiners import COMBINERS
from ps_service.combiners.mean import mean
from ps_service.combiners.trimmed_mean import trimmed
from ps_service.combiners.winsorized_mean import pulled_in
from ps_service.combining import decided_weights

EVERY_COMBINER = pytest.mark.parametrize("name", COMBINERS)
COORDINATES = 97
ADDS_IN_ANOTHER_ORDER = {"trimmed_mean", "winsorized_mean"}
"""If all signs are turned round: the kept values are added from the other end."""
STANDS_AGAINST_FEWER_THAN_HALF = pytest.mark.parametrize(
    "name", ["median", "krum", "multi_krum", "geometric_median"]
)
HEEDS_WEIGHTS = {"mean", "norm_bounded"}


def rows_of(num_workers, seed=0):
    return np.random.default_rng(seed).normal(size=(num_workers, COORDINATES)).astype(np.float32)


def uniform(num_workers):
    return np.full(num_workers, 1 / num_workers, dtype=np.float32)


def decided(name, rows, weights=None, chunk_elements=COORDINATES):
    """What each row counts for."""
    return decided_weights(
        COMBINERS[name],
        uniform(len(rows)) if weights is None else weights,
        [TensorSpec(name="w", shape=rows.shape[1:])],
        lambda _, start, stop: rows[:, start:stop],
        chunk_elements,
    )


def combine(name, rows, weights=None):
    """All there is to combining; `rows` may be overwritten by a combiner: it gets a copy."""
    return COMBINERS[name].combine(rows.copy(), decided(name, rows, weights))


@EVERY_COMBINER
def test_one_workers_result_is_itself(name):
    rows = rows_of(1)
    np.testing.assert_array_equal(combine(name, rows), rows[0])


@EVERY_COMBINER
@pytest.mark.parametrize("num_workers", [1, 2, 9])
def test_rows_that_come_in_turn_give_the_bits_of_rows_that_are_all_there(name, num_workers):
    in_turn = COMBINERS[name].in_turn
    if in_turn is None:
        assert COMBINERS[name].combine is not mean, "the mean needs no two rows at once"
        return
    rows = rows_of(num_workers)
    rows[:, :3] = [-0.0, 0.0, 1e-40]
    weights = decided(name, rows)
    buffer = np.empty(COORDINATES, dtype=np.float32)

    def in_one_buffer():
        for row in rows:
            buffer[:] = row
            yield buffer

    whole = COMBINERS[name].combine(rows.copy(), weights)
    assert in_turn(in_one_buffer(), weights).tobytes() == whole.tobytes()


def test_the_mean_begins_with_zero():
    """−0 + −0 is −0, but 0 + −0 is 0: what is −0 everywhere is 0 in the mean, as it always was."""
    assert not np.signbit(mean(np.full((2, 1), -0.0, dtype=np.float32), uniform(2))).any()


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


@pytest.mark.parametrize("name", ["trimmed_mean", "winsorized_mean", "median"])
@pytest.mark.parametrize("num_workers", [3, 4, 10, 33])
def test_whoever_sorts_forgets_the_order_of_workers_to_the_bit(name, num_workers):
    """Also that of zeros of either sign, which no sort tells apart, and of the smallest numbers there are."""
    rows = rows_of(num_workers)
    rows[:, ::3] = 0.0
    rows[::2, ::3] = -0.0
    rows[:, 1::3] *= np.float32(1e-44)
    assert combine(name, rows[::-1]).tobytes() == combine(name, rows).tobytes()


@EVERY_COMBINER
@pytest.mark.parametrize("factor", [2.0, -1.0, 0.25, 0.0])
def test_scaling_every_row_scales_the_result(name, factor):
    """Exactly, for powers of two: they change no mantissa."""
    rows = rows_of(12)
    scaled = combine(name, rows * np.float32(factor))
    expected = combine(name, rows) * np.float32(factor)
    if factor < 0 and name in ADDS_IN_ANOTHER_ORDER:
        np.testing.assert_allclose(scaled, expected, rtol=0, atol=1e-6)
    elif factor == 0:
        np.testing.assert_array_equal(scaled, 0)
    else:
        np.testing.assert_array_equal(scaled, expected)


@pytest.mark.parametrize("name", sorted(set(COMBINERS) - {"norm_bounded"}))
@pytest.mark.parametrize("num_workers", [2, 3, 8, 13])
def test_shifting_every_row_shifts_the_result(name, num_workers):
    """But where lengths count: those are from zero."""
    rows, shift = rows_of(num_workers), rows_of(1, seed=5)[0]
    np.testing.assert_allclose(combine(name, rows + shift), combine(name, rows) + shift, rtol=0, atol=1e-5)


@EVERY_COMBINER
@pytest.mark.parametrize("num_workers", range(1, 41))
def test_every_split_of_the_coordinates_gives_the_same_bits(name, num_workers):
    rows = rows_of(num_workers, seed=num_workers)
    weights = decided(name, rows)
    whole = combine(name, rows).tobytes()
    for width in (1, 2, 3, 7, 8, 16, 31, 64, COORDINATES):
        assert decided(name, rows, chunk_elements=width).tobytes() == weights.tobytes(), width
        chunks = [
            COMBINERS[name].combine(rows[:, at : at + width].copy(), weights)
            for at in range(0, COORDINATES, width)
        ]
        assert np.concatenate(chunks).tobytes() == whole, width


@EVERY_COMBINER
@pytest.mark.parametrize("num_workers", [1, 2, 3, 4])
def test_no_coordinates_combine_to_none(name, num_workers):
    result = combine(name, np.empty((num_workers, 0), dtype=np.float32))
    assert (result.shape, result.dtype) == ((0,), np.float32)


@EVERY_COMBINER
def test_deciding_leaves_the_rows_as_they_are(name):
    rows = rows_of(7)
    before = rows.copy()
    decided(name, rows)
    np.testing.assert_array_equal(rows, before)


@EVERY_COMBINER
def test_only_those_that_say_so_heed_weights(name):
    rows = rows_of(9)
    weights = np.random.default_rng(1).dirichlet(np.ones(9)).astype(np.float32)
    changed = combine(name, rows, weights).tobytes() != combine(name, rows).tobytes()
    assert changed == (name in HEEDS_WEIGHTS)


@EVERY_COMBINER
@settings(deadline=None, derandomize=True)
@given(num_workers=st.integers(1, 12), seed=st.integers(0, 2**32 - 1), exponent=st.integers(-20, 20))
def test_the_result_lies_between_the_least_and_the_greatest_value_or_nearer_to_zero(
    name, num_workers, seed, exponent
):
    rows = rows_of(num_workers, seed) * np.float32(2.0**exponent)
    result = combine(name, rows)
    slack = np.abs(rows).max() * 1e-6
    assert (result <= np.maximum(rows.max(axis=0), 0) + slack).all()
    assert (result >= np.minimum(rows.min(axis=0), 0) - slack).all()


@STANDS_AGAINST_FEWER_THAN_HALF
@settings(deadline=None, derandomize=True)
@given(
    num_workers=st.integers(3, 16),
    seed=st.integers(0, 2**32 - 1),
    exponent=st.integers(-6, 30),
    alike=st.booleans(),
)
def test_fewer_than_half_wild_workers_move_the_result_no_farther_than_the_others_lie_apart(
    name, num_workers, seed, exponent, alike
):
    """Times a factor of the number of workers; wild workers may conspire, and lie at any distance."""
    num_wild = (num_workers - 1) // 2
    rows = rows_of(num_workers, seed)
    honest = rows[num_wild:]
    rows[:num_wild] = (rows[0] if alike else rows[:num_wild]) * np.float32(10.0**exponent)
    center = honest.mean(axis=0)
    apart = np.linalg.norm(honest - center, axis=1).max()
    assert np.linalg.norm(combine(name, rows) - center) <= 2 * num_workers * apart


@pytest.mark.parametrize("name", ["krum", "multi_krum"])
@pytest.mark.parametrize("num_workers", range(3, 17))
def test_far_rows_that_are_fewer_than_half_count_for_nothing(name, num_workers):
    num_wild = (num_workers - 1) // 2
    rows = rows_of(num_workers)
    rows[:num_wild] = 1e6
    assert (decided(name, rows)[:num_wild] == 0).all()


def test_the_mean_weighs_by_its_weights():
    rows = np.array([[1, 10], [2, 20]], dtype=np.float32)
    np.testing.assert_array_equal(
        combine("mean", rows, np.array([0.25, 0.75], dtype=np.float32)), np.array([1.75, 17.5])
    )


@pytest.mark.parametrize(("name", "withstood"), [("trimmed_mean", trimmed), ("winsorized_mean", pulled_in)])
@pytest.mark.parametrize("num_workers", [3, 5, 9, 10, 21, 32])
def test_wild_values_at_one_end_never_pass(name, withstood, num_workers):
    rows = np.abs(rows_of(num_workers))
    for wild in (1e30, -1e30):
        spoilt = rows.copy()
        spoilt[: withstood(num_workers)] = wild
        assert np.abs(combine(name, spoilt)).max() <= rows.max() * (1 + 1e-6)
        spoilt[withstood(num_workers)] = wild  # one more passes: the number is no understatement
        assert np.abs(combine(name, spoilt)).min() > 1e20


def test_the_trimmed_mean_by_hand():
    """Of 1, 2, 3, 100 the ends 1 and 100 are dropped, max(⌊4/10⌋, 1) = 1 each: (2 + 3)/2 = 2.5."""
    rows = np.array([[100], [2], [1], [3]], dtype=np.float32)
    assert combine("trimmed_mean", rows)[0] == 2.5
    assert [trimmed(k) for k in (1, 2, 3, 19, 20, 40)] == [0, 0, 1, 1, 2, 4]


def test_the_winsorized_mean_by_hand():
    """Of 1, 2, 3, 6, 100, ⌊5/5⌋ = 1 at each end: (2 + 2 + 3 + 6 + 6)/5 = 3.8."""
    rows = np.array([[100], [2], [1], [6], [3]], dtype=np.float32)
    assert combine("winsorized_mean", rows)[0] == np.float32(3.8)
    assert [pulled_in(k) for k in (1, 2, 3, 9, 10, 29, 32)] == [0, 0, 1, 1, 2, 5, 6]


def test_what_a_few_honestly_hold_counts_for_more_in_the_winsorized_mean_than_in_the_trimmed():
    """Three of ten hold 5: pulling in two at each end changes nothing, 15/10; dropping one leaves 10/8."""
    rows = np.array([[0]] * 7 + [[5]] * 3, dtype=np.float32)
    assert combine("winsorized_mean", rows)[0] == 1.5
    assert combine("trimmed_mean", rows)[0] == 1.25
