# SPDX-License-Identifier: Apache-2.0
"""Laws that every server step obeys; hand-worked cases of the average and of Fed-Sophia's."""

from dataclasses import replace

import numpy as np
import pytest

from protocol.fed_sophia import FedSophiaSharedHyperparameters
from ps_service.server_steps import SERVER_STEPS, StepContext
from tests.contracts.small_steps import COORDINATES, WORKERS, a_case, a_context, step_of

BY_THE_MEAN = ["average", "direction", "scaffold", "shared_momentum", "sophia_shared"]
"""Steps that move the parameters by the combined delta and nothing else."""


@pytest.mark.parametrize("wanted", [False, True], ids=["delta only", "every bundle"])
@pytest.mark.parametrize("server_step", SERVER_STEPS)
def test_every_split_of_the_coordinates_gives_the_same_bits(server_step, wanted):
    algorithm, context = a_context(server_step)
    state, received = a_case(algorithm, algorithm.combiners if wanted else ("delta",))
    whole = step_of(server_step, state, received, context)
    for width in (1, 2, 5, 8, 17):
        parts = [
            step_of(server_step, state, received, context, slice(at, at + width))
            for at in range(0, COORDINATES, width)
        ]
        for bundle, values in whole.items():
            assert np.concatenate([part[bundle] for part in parts]).tobytes() == values.tobytes()


@pytest.mark.parametrize("server_step", SERVER_STEPS)
def test_only_known_bundles_change_and_all_stay_float32(server_step):
    algorithm, context = a_context(server_step)
    state, received = a_case(algorithm, algorithm.combiners)
    changed = step_of(server_step, state, received, context)
    assert "params" in changed
    assert set(changed) <= set(algorithm.global_state)
    assert {values.dtype for values in changed.values()} == {np.dtype(np.float32)}


def test_the_average_by_hand():
    """θ = 1, deltas 0.5 and 1.5: θ + (0.5 + 1.5)/2 = 2."""
    _, context = a_context("average")
    state = {"params": np.array([1], dtype=np.float32)}
    received = {"delta": np.array([[0.5], [1.5]], dtype=np.float32)}
    assert step_of("average", state, received, context)["params"][0] == 2


def shared(c=None, *, partial=False):
    """R = 0.4, ρ = 2, J = 2: η = R/(J·ρ) = 0.1; λ = 1, so η·λ = 0.1; β2 = 0.75."""
    hyperparameters = FedSophiaSharedHyperparameters(
        max_round_step=0.4, clip_bound=2, weight_decay=1, hessian_decay=0.75, direction_mixing=c
    )
    bounds = (hyperparameters.bound(2, 2), hyperparameters.bound(1, 2))
    return StepContext(hyperparameters, bounds, partial)


STATE = {
    "params": np.array([0.5], dtype=np.float32),
    "direction": np.array([-0.4], dtype=np.float32),
    "hessian": np.array([2.0], dtype=np.float32),
}
RECEIVED = {"delta": np.array([[0.1], [-0.15]], dtype=np.float32)}


def test_the_shared_step_by_hand_with_weight_decay_and_unequal_steps():
    """Worker 1 did J_1 = 2 steps, worker 2 did J_2 = 1, from θ = 0.5.

    a_1 = 0.9² = 0.81, 1−a_1 = 0.19, R_1 = (ρ/λ)·0.19 = 0.38; a_2 = 0.9, 1−a_2 = 0.1, R_2 = 0.2.
    q_1 = (0.1 + 0.19·0.5)/0.38 = 0.195/0.38 = 0.513158;  q_2 = (−0.15 + 0.1·0.5)/0.2 = −0.5.
    q̄ = 0·(−0.4) + 1·(0.513158 − 0.5)/2 = 0.006579;  θ = 0.5 + (0.1 − 0.15)/2 = 0.475.
    """
    changed = step_of("sophia_shared", STATE, RECEIVED, shared())
    assert set(changed) == {"params", "direction"}
    assert changed["params"][0] == pytest.approx(0.475, rel=1e-6)
    assert changed["direction"][0] == pytest.approx((0.195 / 0.38 - 0.5) / 2, abs=1e-7)


def test_a_share_of_the_step_by_hand():
    """s = 1/4 of the case above: θ = 0.5 − 0.025/4; c = 1 − 1/4, so q̄ = 0.75·(−0.4) + 0.25·0.006579."""
    context = replace(shared(partial=True), share=0.25)
    changed = step_of("sophia_shared", STATE, RECEIVED, context)
    assert changed["params"][0] == pytest.approx(0.5 - 0.025 / 4, rel=1e-6)
    assert changed["direction"][0] == pytest.approx(-0.3 + (0.195 / 0.38 - 0.5) / 8, abs=1e-7)
    average = replace(a_context("average")[1], share=0.25)
    received = {"delta": np.array([[0.5], [1.5]], dtype=np.float32)}
    assert step_of("average", {"params": np.array([1], np.float32)}, received, average)["params"][0] == 1.25


@pytest.mark.parametrize("server_step", SERVER_STEPS)
def test_a_step_changes_nothing_that_it_is_given(server_step):
    algorithm, context = a_context(server_step)
    state, received = a_case(algorithm, algorithm.combiners)
    combined = {bundle: rows[0] for bundle, rows in received.items()}
    combined |= {bundle: received[sent][0].copy() for bundle, sent in algorithm.derived.items()}
    before = {name: values.tobytes() for name, values in (state | combined).items()}
    SERVER_STEPS[server_step].apply(state, combined, context)
    assert {name: values.tobytes() for name, values in (state | combined).items()} == before


@pytest.mark.parametrize("server_step", BY_THE_MEAN)
def test_a_share_of_one_changes_no_bit(server_step):
    algorithm, context = a_context(server_step)
    state, received = a_case(algorithm, algorithm.combiners)
    whole = step_of(server_step, state, received, context)
    assert context.share == 1
    np.testing.assert_array_equal(
        whole["params"], state["params"] + sum(received["delta"]) / np.float32(WORKERS)
    )


def test_each_delta_is_normalised_by_its_own_start():
    """θ_1 = 0.5 and θ_2 = −1: q_1 as above, q_2 = (−0.15 + 0.1·(−1))/0.2 = −1.25, which is clipped to −1."""
    step, received = SERVER_STEPS["sophia_shared"], {name: rows.copy() for name, rows in RECEIVED.items()}
    starts = [np.array([0.5], np.float32), np.array([-1], np.float32)]
    derived = step.derive(received, starts, shared())
    assert derived["direction"].ravel().tolist() == [pytest.approx(0.195 / 0.38, abs=1e-6), -1]


@pytest.mark.parametrize(("c", "partial"), [(0.5, False), (None, True)])
def test_the_shared_direction_is_mixed_under_partial_participation(c, partial):
    """c = 0.5: q̄ = 0.5·(−0.4) + 0.5·0.006579 = −0.196711."""
    changed = step_of("sophia_shared", STATE, RECEIVED, shared(c, partial=partial))
    assert changed["direction"][0] == pytest.approx(-0.2 + (0.195 / 0.38 - 0.5) / 4, abs=1e-7)


def test_the_shared_hessian_moves_when_it_was_wanted():
    """β2 = 0.75, ĥ = 4 and 8: h = 0.75·2 + 0.25·6 = 3."""
    received = RECEIVED | {"hessian": np.array([[4], [8]], dtype=np.float32)}
    assert step_of("sophia_shared", STATE, received, shared())["hessian"][0] == 3


def test_the_shared_direction_never_leaves_its_box():
    received = {"delta": np.array([[0.4], [0.4]], dtype=np.float32)}  # outside what two steps explain
    state = STATE | {"direction": np.array([1], dtype=np.float32)}
    assert step_of("sophia_shared", state, received, shared(0.9))["direction"][0] <= 1
