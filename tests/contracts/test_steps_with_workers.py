# SPDX-License-Identifier: Apache-2.0
"""Server steps that belong to an optimizer of the workers, worked by hand."""

from dataclasses import replace

import numpy as np
import pytest

from protocol.baselines import (
    CurvatureWeightedHyperparameters,
    DoneHyperparameters,
    FedCmHyperparameters,
    FedLionHyperparameters,
    ScaffoldHyperparameters,
)
from ps_service.server_steps import StepContext
from tests.contracts.small_steps import one, sent, step_of


def context_of(hyperparameters, *, workers=2):
    return StepContext(hyperparameters, (None, None), partial=False, steps=(2, 4), workers=workers)


def test_fedcm_by_hand():
    """η = 0.5, J = 2 and 4: d_1 = 3/1 = 3, d_2 = 1/2 = 0.5;  θ = 1 + 2 = 3;  d = 1.75, whatever it was."""
    context = context_of(FedCmHyperparameters(learning_rate=0.5))
    changed = step_of("direction", one(params=1, direction=9), sent(delta=[3, 1]), context)
    assert (changed["params"][0], changed["direction"][0]) == (3, 1.75)


def test_a_share_of_fedcm_by_hand():
    """s = 1/4: θ = 1 + 2/4;  d = 0.75·9 + 0.25·1.75 = 7.1875."""
    context = replace(context_of(FedCmHyperparameters(learning_rate=0.5)), share=0.25)
    changed = step_of("direction", one(params=1, direction=9), sent(delta=[3, 1]), context)
    assert (changed["params"][0], changed["direction"][0]) == (1.5, 7.1875)


def test_fedlion_by_hand():
    """θ = 1 + 2 = 3;  m = (4 + 8)/2 = 6, whatever it was. With s = 1/4: θ = 1.5, m = 0.75·2 + 0.25·6 = 3."""
    context = context_of(FedLionHyperparameters())
    state, received = one(params=1, momentum=2), sent(delta=[3, 1], momentum=[4, 8])
    whole = step_of("shared_momentum", state, received, context)
    assert (whole["params"][0], whole["momentum"][0]) == (3, 6)
    part = step_of("shared_momentum", state, received, replace(context, share=0.25))
    assert (part["params"][0], part["momentum"][0]) == (1.5, 3)


@pytest.mark.parametrize(("workers", "control"), [(2, 4), (8, 1.75), (None, 4)])
def test_scaffold_by_hand(workers, control):
    """η_g = 0.5: θ = 1 + 0.5·2 = 2;  c = 1 + (2/N)·(2 + 4)/2: of two, of eight, of nobody knows how many."""
    context = context_of(ScaffoldHyperparameters(server_learning_rate=0.5), workers=workers)
    received = sent(delta=[3, 1], control_delta=[2, 4])
    changed = step_of("scaffold", one(params=1, control=1), received, context)
    assert (changed["params"][0], changed["control"][0]) == (2, control)


def test_curvature_weighted_by_hand():
    """γ = 1, h = 0 and 2: weights 1 and 3;  Δ̄ = (1·1 + 3·3)/(1 + 3) = 2.5, and θ = 1 + 2.5."""
    context = context_of(CurvatureWeightedHyperparameters(damping=1.0))
    received = sent(delta=[1, 3], hessian=[0, 2])
    assert step_of("curvature_weighted", one(params=1), received, context)["params"][0] == 3.5


def test_equal_curvature_is_the_plain_mean_and_a_missing_one_too():
    context = context_of(CurvatureWeightedHyperparameters(damping=0.25))
    for received in (sent(delta=[1, 3], hessian=[4, 4]), sent(delta=[1, 3])):
        assert step_of("curvature_weighted", one(params=1), received, context)["params"][0] == 3


def test_no_finite_curvature_takes_the_step_out_of_range():
    received = sent(delta=[1, 2], hessian=[1, 3e38])
    moved = step_of(
        "curvature_weighted", one(params=0), received, context_of(CurvatureWeightedHyperparameters())
    )
    np.testing.assert_allclose(moved["params"], 2, rtol=1e-6)


def test_the_more_damping_the_nearer_to_the_plain_mean():
    received = sent(delta=[1, 3], hessian=[0, 2])
    moved = [
        step_of(
            "curvature_weighted",
            one(params=0),
            received,
            context_of(CurvatureWeightedHyperparameters(damping=damping)),
        )["params"][0]
        for damping in (1e-6, 1e-2, 1.0, 1e2, 1e6)
    ]
    assert moved == sorted(moved, reverse=True)
    np.testing.assert_allclose([moved[0], moved[-1]], [3, 2], rtol=1e-5)


def test_done_by_hand():
    """Gradients 2 and 4: g = 3, θ = 1 stays. Directions −2 and −4, η_s = 0.5: θ = 1 − 1.5, and g stays."""
    context = context_of(DoneHyperparameters(server_learning_rate=0.5))
    state = one(params=1, gradient=9)
    assert step_of("done", state, sent(gradient=[2, 4]), context) == one(gradient=3)
    assert step_of("done", state, sent(delta=[-2, -4]), context) == one(params=-0.5)
