# SPDX-License-Identifier: Apache-2.0
"""The contract every task of the menu keeps."""

import inspect
from collections.abc import Callable

import pytest
import torch

from worker.curvature import gauss_newton_bartlett
from worker.tasks import TASKS, Task, load_task
from worker.tasks.fashion_mnist_data import DEBIAN_FOLDER
from worker.tasks.likelihood import LIKELIHOODS
from worker.training import initial_parameters


@pytest.fixture(params=list(TASKS))
def task(request: pytest.FixtureRequest, require_part: Callable[[bool, str], None]) -> Task:
    name: str = request.param
    if not name.startswith("fashion-mnist"):
        return load_task(name)
    require_part(DEBIAN_FOLDER.is_dir(), str(DEBIAN_FOLDER))
    return load_task(name, DEBIAN_FOLDER)


@pytest.mark.parametrize("name", list(TASKS))
def test_its_name_in_the_menu_is_its_own(name: str) -> None:
    assert TASKS[name].name == name
    assert TASKS[name].likelihood in LIKELIHOODS


@pytest.mark.parametrize("name", list(TASKS))
def test_its_class_is_as_short_as_a_users_may_be(name: str) -> None:
    assert len(inspect.getsource(TASKS[name]).splitlines()) <= 30


@pytest.mark.parametrize("name", list(TASKS))
def test_its_model_can_be_exchanged_and_follows_from_the_seed(name: str) -> None:
    task = TASKS[name]()
    first, again, other = (initial_parameters(task, seed) for seed in (0, 0, 1))
    assert all((first[tensor] == again[tensor]).all() for tensor in first)
    assert any((first[tensor] != other[tensor]).any() for tensor in first)


def test_its_model_its_data_and_its_likelihood_fit_together(task: Task) -> None:
    likelihood = LIKELIHOODS[task.likelihood]
    model = task.model()
    for data in (task.training_data(), task.evaluation_data()):
        assert len(data)
        batch = data.batch(torch.arange(8))
        outputs = model(batch.inputs)
        loss = likelihood.loss(outputs, batch.targets)
        assert loss.isfinite() and loss.shape == ()
        estimates = gauss_newton_bartlett(
            outputs,
            batch.targets,
            list(model.parameters()),
            likelihood,
            torch.Generator(),
            retain_graph=False,
        )
        assert all((estimate >= 0).all() for estimate in estimates)


def test_its_data_are_the_same_every_time(task: Task) -> None:
    first, again = task.evaluation_data(), task.evaluation_data()
    assert torch.equal(first.inputs, again.inputs) and torch.equal(first.targets, again.targets)
