# SPDX-License-Identifier: Apache-2.0
"""The bound holds for every honest worker and for nobody who steps farther."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from protocol.algorithms import ALGORITHMS, JOINED, algorithm_named
from protocol.bound import DeltaBound, delta_of
from protocol.bound import bound_of as bound_of_settings
from protocol.encodings import ENCODINGS
from protocol.encodings.dense import F32
from protocol.errors import OutsideBound

Float32Array = npt.NDArray[np.float32]
STARTS = np.array([0.0, 1e-30, -1e-3, 0.04, 0.999, 1.0, -1.03, 1.9999, -37.5, 3e4], np.float32)


def bound_of(round_step: float, steps: int, clip_bound: float, weight_decay: float) -> DeltaBound:
    return DeltaBound.after(
        steps,
        learning_rate=round_step / (steps * clip_bound),
        clip_bound=clip_bound,
        weight_decay=weight_decay,
    )


def trained(
    start: Float32Array, moves: Float32Array, learning_rate: float, weight_decay: float, form: str
) -> Float32Array:
    """Δ after local steps in float32; `moves` holds the clipped u_t, shape (steps, n)."""
    theta = start.copy()
    for move in moves:
        if form == "product":
            theta = theta * np.float32(1 - learning_rate * weight_decay)
        else:
            theta = theta - np.float32(learning_rate * weight_decay) * theta
        theta = theta - np.float32(learning_rate) * move
    delta: Float32Array = theta - start
    return delta


def test_a_hand_worked_bound() -> None:
    """η = 0.1, ρ = 2, λ = 0.5, J = 2.

    a = (1 − 0.05)² = 0.9025, so 1 − a = 0.0975 and R = (2/0.5)·0.0975 = 0.39. From θ_0 = 1 a delta lies
    in [−0.0975 − 0.39, −0.0975 + 0.39] = [−0.4875, 0.2925]: two steps of u = 2 give
    0.95·(0.95 − 0.2) − 0.2 − 1 = −0.4875, two of u = −2 give 0.95·(0.95 + 0.2) + 0.2 − 1 = 0.2925.
    """
    bound = DeltaBound.after(2, learning_rate=0.1, clip_bound=2.0, weight_decay=0.5)
    assert bound.shrinkage == pytest.approx(0.0975, rel=1e-14)
    assert bound.radius == pytest.approx(0.39, rel=1e-14)
    one = np.ones(2, np.float32)
    bound.check("w", np.array([-0.4875, 0.2925], np.float32), one, F32)
    for outside in (-0.4880, 0.2930):
        with pytest.raises(OutsideBound, match="w: 1 of 2 coordinates"):
            bound.check("w", np.array([outside, 0], np.float32), one, F32)
    assert bound.normalise(np.array([-0.4875, 0.2925], np.float32), one) == pytest.approx([-1, 1], rel=1e-6)


def test_without_weight_decay_the_radius_is_the_sum_of_the_steps() -> None:
    bound = DeltaBound.after(7, learning_rate=0.01, clip_bound=3.0, weight_decay=0.0)
    assert bound.radius == pytest.approx(0.21, rel=1e-15)
    assert bound.shrinkage == 0


@pytest.mark.parametrize("exponent", [1, 3, 6, 9, 12, 15, 18, 100, 300, 320])
def test_the_bound_is_continuous_as_weight_decay_vanishes(exponent: int) -> None:
    weight_decay = 10.0**-exponent
    without = DeltaBound.after(10, learning_rate=1e-3, clip_bound=3.0, weight_decay=0.0)
    with_little = DeltaBound.after(10, learning_rate=1e-3, clip_bound=3.0, weight_decay=weight_decay)
    assert with_little.radius == pytest.approx(without.radius, rel=10 * 1e-3 * weight_decay + 1e-15)
    assert with_little.radius <= without.radius * (1 + 1e-15)
    assert with_little.shrinkage == pytest.approx(10 * 1e-3 * weight_decay, rel=1e-3)


def test_the_bound_is_positive_and_finite_at_the_edges_of_what_a_run_may_ask() -> None:
    for round_step, clip_bound, weight_decay in itertools.product(
        (1e-30, 1e30), (1e-30, 1e30), (0, 5e-324, 1e-300, 10)
    ):
        learning_rate = round_step / (1_000_000 * clip_bound)
        if learning_rate * weight_decay >= 1:
            continue
        bound = DeltaBound.after(
            1, learning_rate=learning_rate, clip_bound=clip_bound, weight_decay=weight_decay
        )
        assert 0 < np.float32(bound.radius) < np.inf


@pytest.mark.parametrize("form", ["difference", "product"])
@pytest.mark.parametrize("weight_decay", [0.0, 1e-3, 0.1])
@pytest.mark.parametrize("round_step", [1e-7, 1e-4, 0.04])
def test_no_clipped_trajectory_in_float32_leaves_the_bound(
    round_step: float, weight_decay: float, form: str
) -> None:
    rng = np.random.default_rng(3)
    for steps, clip_bound in itertools.product((1, 10, 54, 400), (0.04, 10 / 3, 10.0)):
        bound = bound_of(round_step, steps, clip_bound, weight_decay)
        start = np.repeat(STARTS, 4)
        moves = rng.standard_cauchy((steps, start.size)).astype(np.float32) * np.float32(clip_bound)
        moves[:, 0::4], moves[:, 1::4] = np.inf, -np.inf  # as far as one can, both ways
        moves = np.clip(moves, np.float32(-clip_bound), np.float32(clip_bound))
        delta = trained(start, moves, round_step / (steps * clip_bound), weight_decay, form)
        bound.check("w", delta, start, F32)
        assert np.abs(bound.normalise(delta, start)).max() <= 1


@pytest.mark.parametrize("form", ["difference", "product"])
def test_rounding_that_always_errs_the_same_way_is_allowed_for(form: str) -> None:
    """θ just above 1, where half an ulp is 2⁻²⁴·θ; ηλ and η·ρ chosen to round up at every step."""
    steps, weight_decay, grid = 1000, 1e-3, 2.0**-23
    learning_rate = grid / 4 * 1.001 / weight_decay
    clip_bound = 0.5001 * grid / learning_rate
    start = np.array([1 + steps * 3 * grid], np.float32)
    moves = np.full((steps, 1), clip_bound, np.float32)
    bound = DeltaBound.after(
        steps, learning_rate=learning_rate, clip_bound=clip_bound, weight_decay=weight_decay
    )
    delta = trained(start, moves, learning_rate, weight_decay, form)
    assert abs(float(delta[0]) + bound.shrinkage * float(start[0])) > 1.4 * bound.radius
    bound.check("w", delta, start, F32)
    assert bound.normalise(delta, start)[0] == -1


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("steps", [1, 10, 54])
@pytest.mark.parametrize("weight_decay", [0.0, 1e-3])
def test_one_percent_farther_is_outside(sign: int, steps: int, weight_decay: float) -> None:
    bound = bound_of(0.04, steps, 10 / 3, weight_decay)
    start = STARTS[np.abs(STARTS) < 2]
    farther = (-bound.shrinkage * start + sign * 1.01 * bound.radius).astype(np.float32)
    for index in range(start.size):
        with pytest.raises(OutsideBound):
            bound.check("w", farther[index : index + 1], start[index : index + 1], F32)


def test_every_coordinate_counts_whatever_the_shape() -> None:
    bound = bound_of(0.04, 10, 10 / 3, 0.0)
    start, delta = np.zeros((3, 4, 5), np.float32), np.zeros((3, 4, 5), np.float32)
    delta[2, 3, 4] = 0.041
    with pytest.raises(OutsideBound, match="1 of 60"):
        bound.check("w", delta, start, F32)
    bound.check("scalar", np.array(0.04, np.float32), np.array(0.0, np.float32), F32)
    bound.check("empty", np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32), F32)


def test_a_nan_is_outside() -> None:
    with pytest.raises(OutsideBound):
        bound_of(0.04, 10, 10 / 3, 0.0).check(
            "w", np.array([np.nan], np.float32), np.zeros(1, np.float32), F32
        )


def test_fewer_steps_have_a_smaller_bound() -> None:
    radii = [
        DeltaBound.after(steps, learning_rate=1e-3, clip_bound=3.0, weight_decay=1e-3).radius
        for steps in range(1, 11)
    ]
    assert radii == sorted(radii)
    assert radii[4] == pytest.approx(radii[9] / 2, rel=1e-4)


@pytest.mark.parametrize("encoding", [name for name, each in ENCODINGS.items() if each.bundle is None])
def test_an_honest_delta_is_inside_however_it_travelled(encoding: str) -> None:
    """Deltas at the very edge of the box, spread over two binades, after encoding and decoding."""
    entry = ENCODINGS[encoding]
    start = np.linspace(-2, 2, 4001, dtype=np.float32)
    for round_step in (1e-4, 0.03, 0.04, 0.0626):
        bound = bound_of(round_step, 10, 10 / 3, 1e-3)
        for sign in (-1, 1):
            sent = (-bound.shrinkage * start.astype(np.float64) + sign * bound.radius).astype(np.float32)
            delta = np.empty_like(sent)
            entry.decode(entry.encode(sent), delta)
            bound.check("w", delta, start, entry)


@pytest.mark.parametrize("encoding", ["bounded_int8", "bounded_int4"])
@pytest.mark.parametrize("weight_decay", [0.0, 1e-3, 0.5])
def test_a_delta_sent_by_its_bound_stays_inside_and_close(encoding: str, weight_decay: float) -> None:
    entry = ENCODINGS[encoding]
    rng = np.random.default_rng(2)
    start = np.linspace(-2, 2, 4001, dtype=np.float32)
    bound = bound_of(0.04, 10, 10 / 3, weight_decay)
    moves = rng.uniform(-1, 1, start.size)
    moves[:2] = -1, 1
    delta = (-bound.shrinkage * start.astype(np.float64) + moves * bound.radius).astype(np.float32)
    sent, decoded = bound.from_start("w", delta, start), np.empty_like(start)
    entry.decode(entry.encode(sent, bound.constants, seed=1), decoded, bound.constants)
    received = delta_of(decoded, start, bound.constants)
    bound.check("w", received, start, F32)
    level = bound.radius / (127 if encoding == "bounded_int8" else 7)
    assert np.abs(received - delta).max() <= level * (1 + 1e-3)
    assert abs((received - delta).mean()) < 5 * level / np.sqrt(12 * start.size) + level / 8192


def test_a_delta_outside_is_not_pressed_into_its_box() -> None:
    bound = bound_of(0.04, 10, 10 / 3, 1e-3)
    start = np.ones(3, np.float32)
    with pytest.raises(OutsideBound, match="1 of 3"):
        bound.from_start("w", np.array([0.0, 0.041, 0.0], np.float32), start)
    with pytest.raises(OutsideBound):
        bound.from_start("w", np.array([0.0, np.nan, 0.0], np.float32), start)


def test_what_float32_rounded_out_of_the_box_is_pressed_into_it() -> None:
    bound = bound_of(0.04, 10, 10 / 3, 0.0)
    farther = np.array([bound.radius * (1 + 5e-5), -bound.radius * (1 + 5e-5)], np.float32)
    assert np.abs(bound.from_start("w", farther, np.zeros(2, np.float32))).max() == np.float32(bound.radius)
    # a tensor of no dimension is one too, such as a temperature that is learned
    scalar = bound.from_start("w", farther[0].reshape(()), np.zeros((), np.float32))
    assert isinstance(scalar, np.ndarray) and scalar.shape == () and scalar == np.float32(bound.radius)


@pytest.mark.parametrize(
    "name", ["fed-sophia-shared", "fed-sophia", "fedlion", "fed-sophia+fedadam", "fedavg"]
)
@pytest.mark.parametrize("steps", [1, 7, 10])
def test_a_worker_finds_the_bound_of_the_server_in_its_settings(name: str, steps: int) -> None:
    hyperparameters = algorithm_named(name).parse({})
    found = bound_of_settings(algorithm_named(name).optimizer, hyperparameters.optimizer_settings(10), steps)
    assert found == hyperparameters.bound(steps, 10)


def test_every_algorithm_that_is_bounded_is_known_to_workers() -> None:
    for name in (*ALGORITHMS, *JOINED):
        row = algorithm_named(name)
        hyperparameters = row.parse({})
        found = bound_of_settings(row.optimizer, hyperparameters.optimizer_settings(10), 3)
        assert found == hyperparameters.bound(3, 10), name


@pytest.mark.parametrize("factor", [1 - 1e-5, 1 + 1e-5, 2.0, 0.0])
@pytest.mark.parametrize("constant", ["scale", "shrinkage"])
def test_the_constants_of_another_bound_are_refused(factor: float, constant: str) -> None:
    bound = bound_of(0.04, 10, 10 / 3, 1e-3)
    bound.require_constants("w", bound.constants)
    bound.require_constants("w", {name: value * (1 + 1e-7) for name, value in bound.constants.items()})
    with pytest.raises(OutsideBound, match=f"w: {constant}: expected"):
        bound.require_constants("w", {**bound.constants, constant: bound.constants[constant] * factor})


def test_the_tolerance_of_an_encoding_is_needed() -> None:
    bound = bound_of(0.03, 10, 10 / 3, 0.0)
    start = np.zeros(1, np.float32)
    delta = np.empty(1, np.float32)
    ENCODINGS["bf16"].decode(ENCODINGS["bf16"].encode(np.array([bound.radius], np.float32)), delta)
    assert delta[0] > bound.radius * (1 + 1e-4)
    bound.check("w", delta, start, ENCODINGS["bf16"])
    with pytest.raises(OutsideBound):
        bound.check("w", delta, start, F32)


def test_the_direction_is_within_one_even_for_a_delta_that_is_not() -> None:
    bound = bound_of(1e-7, 10, 10 / 3, 1e-3)
    delta = np.array([1.0, -1.0, 0.0], np.float32)
    assert bound.normalise(delta, np.zeros(3, np.float32)).tolist() == [1.0, -1.0, 0.0]
    assert delta.tolist() == [1.0, -1.0, 0.0]
