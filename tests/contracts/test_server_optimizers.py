# SPDX-License-Identifier: Apache-2.0
"""Server steps with moments of their own, worked by hand, and what a share of such a step is."""

import math
from dataclasses import replace

import numpy as np
import pytest

from protocol.baselines import (
    FedAdagradHyperparameters,
    FedAdamHyperparameters,
    FedAvgMHyperparameters,
    FedYogiHyperparameters,
)
from ps_service.server_steps import StepContext
from tests.contracts.small_steps import one, sent, step_of


def context_of(hyperparameters, share=1.0):
    return StepContext(hyperparameters, (None, None), partial=False, share=share)


MOMENTUM = context_of(FedAvgMHyperparameters(server_learning_rate=0.5, momentum_decay=0.75))
NUMBERS = {"server_learning_rate": 0.5, "momentum_decay": 0.75, "epsilon": 0.25}
ADAM = context_of(FedAdamHyperparameters(**NUMBERS, second_moment_decay=0.75))
YOGI = context_of(FedYogiHyperparameters(**NUMBERS, second_moment_decay=0.75))
ADAGRAD = context_of(FedAdagradHyperparameters(**NUMBERS))
DELTAS = sent(delta=[1.0, 3.0])
"""Their mean is 2, its square 4."""
adaptive = pytest.mark.parametrize(
    ("step", "context"), [("adam", ADAM), ("yogi", YOGI), ("adagrad", ADAGRAD)]
)


def test_momentum_by_hand():
    """m = 0.75·4 + 2 = 5;  θ = 1 + 0.5·5 = 3.5."""
    changed = step_of("momentum", one(params=1, momentum=4), DELTAS, MOMENTUM)
    assert (changed["momentum"][0], changed["params"][0]) == (5, 3.5)


def test_adam_by_hand():
    """m = 0.75·4 + 0.25·2 = 3.5;  v = 0.75·1 + 0.25·4 = 1.75;  θ = 1 + 0.5·3.5/(√1.75 + 0.25)."""
    changed = step_of("adam", one(params=1, momentum=4, second_moment=1), DELTAS, ADAM)
    assert (changed["momentum"][0], changed["second_moment"][0]) == (3.5, 1.75)
    assert changed["params"][0] == pytest.approx(1 + 1.75 / (math.sqrt(1.75) + 0.25), rel=1e-6)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (9, 8), (4, 4)])
def test_yogi_by_hand(before, after):
    """v below Δ̄² = 4 grows by 0.25·4 = 1, above it shrinks by 1, there it stays; m as in Adam."""
    changed = step_of("yogi", one(params=1, momentum=4, second_moment=before), DELTAS, YOGI)
    assert (changed["momentum"][0], changed["second_moment"][0]) == (3.5, after)
    assert changed["params"][0] == pytest.approx(1 + 1.75 / (math.sqrt(after) + 0.25), rel=1e-6)


def test_adagrad_by_hand():
    """v = 5 + 4 = 9;  θ = 1 + 0.5·3.5/(3 + 0.25)."""
    changed = step_of("adagrad", one(params=1, momentum=4, second_moment=5), DELTAS, ADAGRAD)
    assert changed["second_moment"][0] == 9
    assert changed["params"][0] == pytest.approx(1 + 1.75 / 3.25, rel=1e-6)


def test_adagrad_has_no_momentum_by_default_and_the_others_have():
    assert FedAdagradHyperparameters().momentum_decay == 0
    assert FedAdamHyperparameters().momentum_decay == FedYogiHyperparameters().momentum_decay == 0.9


@adaptive
def test_a_second_moment_that_is_absent_begins_at_the_square_of_epsilon(step, context):
    absent = step_of(step, one(params=1, momentum=0, second_moment=0), DELTAS, context)
    begun = step_of(step, one(params=1, momentum=0, second_moment=0.0625), DELTAS, context)
    assert absent == begun


@adaptive
def test_a_second_moment_never_falls_to_zero_or_below(step, context):
    generator = np.random.default_rng(0)
    state = one(params=0, momentum=0, second_moment=0)
    for _ in range(200):
        size = 10 ** generator.uniform(-6, 2)
        state = step_of(step, state, sent(delta=generator.normal(scale=size, size=2)), context)
        assert state["second_moment"][0] > 0


@pytest.mark.parametrize(
    ("step", "context", "steady"),
    [
        ("momentum", MOMENTUM, {"momentum": 2 / 0.25}),
        ("adam", ADAM, {"momentum": 2, "second_moment": 4}),
        ("yogi", YOGI, {"momentum": 2, "second_moment": 4}),
    ],
)
def test_where_every_delta_is_the_same_a_share_of_a_step_is_that_share_of_its_way(step, context, steady):
    state = one(params=0, **steady)
    whole = step_of(step, state, DELTAS, context)
    part = step_of(step, state, DELTAS, replace(context, share=0.25))
    assert part["params"][0] == pytest.approx(0.25 * whole["params"][0], rel=1e-6)
    for bundle, value in steady.items():
        assert whole[bundle][0] == pytest.approx(value, rel=1e-6)
        assert part[bundle][0] == pytest.approx(value, rel=1e-6)


def test_shares_of_a_step_forget_as_much_as_a_whole_one():
    """Four quarters with β = 0.75 leave 0.75 of the old momentum, as one step does."""
    state = one(params=0, momentum=1)
    for _ in range(4):
        state = step_of("momentum", state, sent(delta=[0, 0]), replace(MOMENTUM, share=0.25))
    assert state["momentum"][0] == pytest.approx(0.75, rel=1e-6)


def test_a_share_of_adagrads_sum_by_hand():
    """s = 1/4: v = 5 + 4/4 = 6."""
    changed = step_of(
        "adagrad", one(params=1, momentum=0, second_moment=5), DELTAS, replace(ADAGRAD, share=0.25)
    )
    assert changed["second_moment"][0] == 6
