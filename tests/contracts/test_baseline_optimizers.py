# SPDX-License-Identifier: Apache-2.0
"""The local steps of the baselines, worked by hand or against PyTorch's own."""

import pytest
import torch

from protocol.baselines import FedLionHyperparameters
from worker.optimizers import OPTIMIZERS
from worker.optimizers.base import KeptTensors, Optimizer, RoundStart, Tensors

ADAMW = {
    "learning_rate": 0.01,
    "momentum_decay": 0.9,
    "second_moment_decay": 0.99,
    "weight_decay": 0.1,
    "epsilon": 1e-8,
    "keep_state": 1.0,
}


def tensors(*values: float) -> Tensors:
    return (torch.tensor(values),)


def begin(
    name: str,
    settings: dict[str, float],
    parameters: Tensors,
    kept: KeptTensors | None = None,
    wanted: tuple[str, ...] = ("delta",),
    **shared: Tensors,
) -> Optimizer:
    return OPTIMIZERS[name](settings, RoundStart(parameters, shared, kept, wanted))


def close(found: Tensors, *expected: float) -> bool:
    torch.testing.assert_close(found, tensors(*expected))
    return True


def test_two_proximal_steps_by_hand() -> None:
    """η = 0.5, μ = 0.5, g = 2 twice, from θ_0 = 1.

    θ = 1 − 0.5·(2 + 0.5·0) = 0;  θ = 0 − 0.5·(2 + 0.5·(0 − 1)) = −0.75.
    """
    parameters = tensors(1.0)
    optimizer = begin("proximal", {"learning_rate": 0.5, "proximal_weight": 0.5}, parameters)
    optimizer = optimizer.step(parameters, tensors(2.0), None)
    assert close(parameters, 0.0)
    optimizer.step(parameters, tensors(2.0), None)
    assert close(parameters, -0.75)


def test_an_adamw_step_by_hand() -> None:
    """η = 0.01, λ = 0.1, from θ = 2 with g = −3: m̂ = −3, v̂ = 9, so θ = 2 − 0.002 + 0.01·3/3 = 2.008."""
    parameters = tensors(2.0)
    begin("adamw", ADAMW, parameters).step(parameters, tensors(-3.0), None)
    assert close(parameters, 2.008)


def test_adamw_is_pytorchs_own_over_three_rounds_of_kept_state() -> None:
    generator = torch.Generator().manual_seed(1)
    ours = (torch.randn(7, 5, generator=generator), torch.randn(5, generator=generator))
    theirs = [torch.nn.Parameter(tensor.clone()) for tensor in ours]
    reference = torch.optim.AdamW(theirs, lr=0.01, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
    kept = None
    for _ in range(3):
        optimizer = begin("adamw", ADAMW, ours, kept)
        for _ in range(10):
            gradients = tuple(torch.randn(tensor.shape, generator=generator) for tensor in ours)
            optimizer = optimizer.step(ours, gradients, None)
            for parameter, gradient in zip(theirs, gradients, strict=True):
                parameter.grad = gradient
            reference.step()
        kept = optimizer.kept()
    assert kept is not None and kept.step == 30
    torch.testing.assert_close(ours, tuple(parameter.detach() for parameter in theirs))


def test_adamw_that_is_reset_keeps_nothing_and_heeds_nothing_kept() -> None:
    reset = ADAMW | {"keep_state": 0.0}
    fresh, handed = tensors(2.0), tensors(2.0)
    first = begin("adamw", reset, fresh).step(fresh, tensors(-3.0), None)
    assert first.kept() is None
    old = KeptTensors(5, {"momentum": tensors(9.0), "second_moment": tensors(9.0)})
    begin("adamw", reset, handed, old).step(handed, tensors(-3.0), None)
    assert torch.equal(fresh[0], handed[0])


def test_two_lion_steps_by_hand() -> None:
    """η = 0.25, w = 0.5, β2 = 0.75, m = 1; g = −2, then 5; a second coordinate has m = g = 0.

    sign(0.5·1 − 0.5·2) = −1: θ = 0.25, m = 0.75 − 0.5 = 0.25;
    sign(0.5·0.25 + 0.5·5) = 1: θ = 0, m = 0.1875 + 1.25 = 1.4375.
    """
    parameters = tensors(0.0, 0.0)
    settings = {"learning_rate": 0.25, "momentum_weight": 0.5, "momentum_decay": 0.75}
    optimizer = begin("lion", settings, parameters, momentum=tensors(1.0, 0.0))
    optimizer = optimizer.step(parameters, tensors(-2.0, 0.0), None)
    assert close(parameters, 0.25, 0.0)
    optimizer = optimizer.step(parameters, tensors(5.0, 0.0), None)
    assert close(parameters, 0.0, 0.0)
    assert close(optimizer.uploads()["momentum"], 1.4375, 0.0)
    assert optimizer.kept() is None


def test_lion_moves_as_far_as_its_bound_and_no_farther() -> None:
    hyperparameters = FedLionHyperparameters(max_round_step=0.04)
    assert hyperparameters.bound(3, 10).radius == pytest.approx(0.012)
    assert hyperparameters.bound(3, 10).shrinkage == 0
    parameters = tensors(0.0)
    optimizer = begin("lion", hyperparameters.optimizer_settings(10), parameters)
    for _ in range(3):
        optimizer = optimizer.step(parameters, tensors(7.0), None)
    assert close(parameters, -0.012)


def test_a_guided_step_by_hand() -> None:
    """η = 0.5, α = 0.25, g = 4, d = 2: θ = 1 − 0.5·(0.25·4 − 0.75·2) = 1.25, and again 1.5: d stays."""
    parameters = tensors(1.0)
    settings = {"learning_rate": 0.5, "gradient_weight": 0.25}
    optimizer = begin("guided", settings, parameters, direction=tensors(2.0))
    optimizer = optimizer.step(parameters, tensors(4.0), None)
    assert close(parameters, 1.25)
    optimizer.step(parameters, tensors(4.0), None)
    assert close(parameters, 1.5)


def test_a_round_of_scaffold_by_hand() -> None:
    """η = 0.5, c = 1, c_i = 3, so each step adds c − c_i = −2; g = 2, then 6, from θ = 1.

    θ = 1 − 0.5·0 = 1;  θ = 1 − 0.5·4 = −1;  c_i⁺ = (2 + 6)/2 = 4, sent as 4 − 3 = 1.
    The paper's option II says the same: c_i − c + (θ_0 − θ_2)/(2·0.5) = 3 − 1 + 2 = 4.
    """
    parameters = tensors(1.0)
    before = KeptTensors(10, {"control": tensors(3.0)})
    optimizer = begin("scaffold", {"learning_rate": 0.5}, parameters, before, control=tensors(1.0))
    optimizer = optimizer.step(parameters, tensors(2.0), None)
    assert close(parameters, 1.0)
    optimizer = optimizer.step(parameters, tensors(6.0), None)
    assert close(parameters, -1.0)
    assert close(optimizer.uploads()["control_delta"], 1.0)
    kept = optimizer.kept()
    assert kept is not None and kept.step == 12
    assert close(kept.bundles["control"], 4.0)


def test_measured_sgd_by_hand() -> None:
    """η = 0.5, τ = 2: estimates at steps 0 and 2, 4 and 8, whose mean is 6; they do not change the steps."""
    parameters = tensors(1.0)
    optimizer = begin("measured", {"learning_rate": 0.5, "hessian_every": 2.0}, parameters)
    asked = []
    for estimate in (4.0, 99.0, 8.0):
        asked.append(optimizer.wants_hessian)
        given = tensors(estimate) if optimizer.wants_hessian else None
        optimizer = optimizer.step(parameters, tensors(1.0), given)
    assert asked == [True, False, True]
    assert close(parameters, -0.5)
    assert close(optimizer.uploads()["hessian"], 6.0)
