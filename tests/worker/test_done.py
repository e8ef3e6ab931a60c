# SPDX-License-Identifier: Apache-2.0
"""The two phases of DONE on a worker: by hand, and against a system of equations that is solved directly."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from protocol.messages import Assignment
from tests.worker.small_rounds import CPU, a_state, a_trainer, an_assignment, assert_same_bits, digits
from worker.draws import Draws
from worker.model import Arrays
from worker.optimizers import OPTIMIZERS
from worker.optimizers.base import RoundStart
from worker.tasks.base import Examples, Task
from worker.tasks.likelihood import likelihood_named
from worker.training import Trainer, initial_parameters

torch.set_num_threads(1)

GRADIENT, DIRECTION = 0, 1
"""A version of each phase."""


def test_a_gradient_phase_by_hand() -> None:
    """g = (2, 1), then (6, 3): their mean is (4, 2), and θ stays."""
    parameters = (torch.tensor([1.0, 1.0]),)
    optimizer = OPTIMIZERS["done"](
        {"richardson_rate": 0.25}, RoundStart(parameters, {}, None, bundles_wanted=("gradient",))
    )
    for gradient in ([2.0, 1.0], [6.0, 3.0]):
        assert optimizer.vector is None
        optimizer = optimizer.step(parameters, (torch.tensor(gradient),), None)
    assert optimizer.uploads()["gradient"][0].tolist() == [4, 2]
    assert parameters[0].tolist() == [1, 1]


def test_two_richardson_steps_by_hand() -> None:
    """H = [[2, 1], [1, 2]], g = (1, 0), ω = 0.25.

    d = −0.25·(1, 0) = (−0.25, 0);  H·d = (−0.5, −0.25), and + g = (0.5, −0.25);
    d = (−0.25 − 0.125, 0 + 0.0625) = (−0.375, 0.0625), on its way to −H⁻¹·g = (−2/3, 1/3).
    """
    hessian, parameters = torch.tensor([[2.0, 1.0], [1.0, 2.0]]), (torch.tensor([9.0, 9.0]),)
    start = RoundStart(parameters, {"gradient": (torch.tensor([1.0, 0.0]),)}, None, ("delta",))
    optimizer = OPTIMIZERS["done"]({"richardson_rate": 0.25}, start)
    gradients = (torch.tensor([100.0, 100.0]),)  # this worker's own, which has no part in it
    found = []
    for _ in range(60):
        assert optimizer.vector is not None
        optimizer = optimizer.step(parameters, gradients, (hessian @ optimizer.vector[0],))
        found.append(optimizer.uploads()["delta"][0].tolist())
    assert found[:2] == [[-0.25, 0], [-0.375, 0.0625]]
    assert found[-1] == pytest.approx([-2 / 3, 1 / 3], rel=1e-6)
    assert parameters[0].tolist() == [9, 9]


# --- on a mini-batch of a task -------------------------------------------------------------------


class LinearTask(Task):
    """Four numbers in, one out; the loss of a linear model is convex, its Hessian here positive definite."""

    name = "linear"

    def model(self) -> nn.Module:
        return nn.Linear(4, 1)

    def training_data(self) -> Examples:
        generator = torch.Generator().manual_seed(5)
        inputs = torch.randn(100, 4, generator=generator)
        targets = (inputs.sum(dim=1, keepdim=True) + torch.randn(100, 1, generator=generator) > 0).float()
        return Examples(inputs, targets)

    def evaluation_data(self) -> Examples:
        return self.training_data()


class LeastSquares(LinearTask):
    likelihood = "gaussian"


class LogisticRegression(LinearTask):
    likelihood = "bernoulli"


def batches(task: Task, assignment: Assignment, count: int) -> list[Examples]:
    """The mini-batches that a trainer with all of the task's data draws."""
    draws, data = Draws.seeded(assignment.seed, CPU), task.training_data()
    return [
        data.batch(torch.randint(len(data), (assignment.batch_size,), generator=draws.batches))
        for _ in range(count)
    ]


def loss_at(task: Task, flat: Tensor, batch: Examples) -> Tensor:
    outputs = batch.inputs @ flat[:4].unsqueeze(1) + flat[4]
    return likelihood_named(task.likelihood).loss(outputs, batch.targets)


def flattened(bundle: Arrays) -> Tensor:
    return torch.from_numpy(np.concatenate([array.ravel() for array in bundle.values()]))


@pytest.mark.parametrize("task", [LeastSquares(), LogisticRegression()], ids=lambda task: task.likelihood)
def test_many_steps_solve_for_newtons_direction_on_one_mini_batch(task: Task) -> None:
    params = initial_parameters(task, 0)
    gradient = {"weight": np.array([[0.3, -0.2, 0.1, 0.5]], np.float32), "bias": np.array([0.4], np.float32)}
    assignment = an_assignment("done", version=DIRECTION, local_steps=1500, richardson_rate=0.2)
    trainer = Trainer(task, task.training_data(), CPU)
    trained = trainer.train(assignment, {"params": params, "gradient": gradient}, None)

    [batch] = batches(task, assignment, 1)
    theta = flattened(params)
    hessian = torch.autograd.functional.hessian(lambda flat: loss_at(task, flat, batch), theta)
    assert torch.linalg.eigvalsh(hessian)[0] > 0
    expected = -torch.linalg.solve(hessian, flattened(gradient))
    torch.testing.assert_close(flattened(trained.bundles["delta"]), expected, rtol=1e-3, atol=1e-4)
    loss = loss_at(task, theta, batch).item()
    assert trained.metrics["train_loss"] == pytest.approx(loss, rel=1e-5), "one batch, and θ stays"


def test_a_gradient_phase_gives_the_mean_gradient_of_its_mini_batches_and_nothing_else() -> None:
    task = LogisticRegression()
    params = initial_parameters(task, 0)
    assignment = an_assignment("done", version=GRADIENT, local_steps=3)
    trained = Trainer(task, task.training_data(), CPU).train(assignment, {"params": params}, None)
    assert list(trained.bundles) == ["gradient"]
    theta = flattened(params)
    gradients = [
        torch.autograd.functional.jacobian(lambda flat, batch=batch: loss_at(task, flat, batch), theta)
        for batch in batches(task, assignment, 3)
    ]
    expected = torch.stack(gradients).mean(dim=0)
    torch.testing.assert_close(flattened(trained.bundles["gradient"]), expected, rtol=1e-5, atol=1e-7)


def test_without_a_gradient_there_is_nowhere_to_go() -> None:
    trained = a_trainer().train(an_assignment("done", version=DIRECTION), a_state("done"), None)
    assert list(trained.bundles) == ["delta"]
    assert not any(array.any() for array in trained.bundles["delta"].values())


def test_phases_in_turn_lower_the_loss_of_a_network() -> None:
    trainer, state, losses = a_trainer(), a_state("done"), []
    for version in range(20):
        assignment = an_assignment("done", version=version, seed=version, richardson_rate=0.2)
        trained = trainer.train(assignment, state, None)
        losses.append(trained.metrics["train_loss"])
        if "delta" in trained.bundles:
            delta = trained.bundles["delta"]
            state["params"] = {name: array + delta[name] for name, array in state["params"].items()}
        else:
            state["gradient"] = trained.bundles["gradient"]
    assert losses[-1] < losses[0] / 2
    assert trainer.evaluate(state).metrics["test_accuracy"] > 0.6


def test_a_direction_is_the_same_bits_again() -> None:
    state = a_state("done") | {"gradient": initial_parameters(digits(), 1)}
    first, second = (
        a_trainer().train(an_assignment("done", version=DIRECTION), state, None) for _ in range(2)
    )
    assert_same_bits(first.bundles, second.bundles)
