# SPDX-License-Identifier: Apache-2.0
"""Stacked training: what many workers give at once is what they give one after another."""

import dataclasses
import threading

import numpy as np
import pytest
import torch
from torch import nn

from protocol.algorithms import ALGORITHMS
from protocol.errors import InvalidTask, NotFinite
from tests.worker.small_rounds import CPU, OnDigits, a_bundle, an_assignment, digits
from worker.local_state import Kept
from worker.model import Arrays
from worker.stacked import Job, StackedTrainer
from worker.tasks.base import Examples, Task
from worker.tasks.partition import Indices, parse_partition
from worker.training import Trained, Trainer, initial_parameters

WORKERS = 5
torch.set_num_threads(1)


def parts(task: Task) -> tuple[Examples, list[Indices]]:
    examples = task.training_data()
    split = parse_partition("shards:2").indices_of_each(examples.targets.numpy(), range(WORKERS), WORKERS, 0)
    return examples, split


def stacked_trainer(task: Task, stack: int, threads: int = 1) -> StackedTrainer:
    examples, rows = parts(task)
    return StackedTrainer(task, examples, rows, CPU, stack=stack, threads=threads)


def one_by_one(task: Task) -> list[Trainer]:
    examples, rows = parts(task)
    return [Trainer(task, examples.batch(own), CPU) for own in rows]


def jobs_of(algorithm: str, version: int, kept: dict[int, Kept | None], workers: list[int]) -> list[Job]:
    assignment = an_assignment(algorithm, version=version, local_steps=4)
    return [
        Job(
            worker,
            assignment.model_copy(update={"slot": worker, "seed": 100 * version + worker}),
            kept.get(worker),
        )
        for worker in workers
    ]


def assert_close(found: Arrays, expected: Arrays, size: float) -> None:
    """Almost all to 1e-5 of the largest value; dividing by a curvature near zero makes more of rounding."""
    for name, values in expected.items():
        assert isinstance(found[name], np.ndarray) and found[name].dtype == np.float32
        apart = np.abs(found[name] - values) / size
        assert apart.max(initial=0) < 1e-3, name
        assert np.count_nonzero(apart > 1e-5) <= 0.002 * apart.size, name


def assert_same(found: Trained, expected: Trained) -> None:
    """Equal to rounding of float32, relative to the largest value of each bundle."""
    assert list(found.bundles) == list(expected.bundles)
    assert (found.num_examples, found.local_steps) == (expected.num_examples, expected.local_steps)
    for bundle, arrays in expected.bundles.items():
        assert_close(found.bundles[bundle], arrays, max(np.abs(each).max() for each in arrays.values()))
    assert (found.kept is None) == (expected.kept is None)
    if found.kept is not None and expected.kept is not None:
        assert found.kept.step == expected.kept.step
        for bundle, kept in expected.kept.bundles.items():
            arrays = dict(found.kept.bundles[bundle])
            assert_close(arrays, dict(kept), max(np.abs(each).max() for each in kept.values()))


@pytest.mark.parametrize("stack", [1, 2, WORKERS])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_stack_gives_what_its_workers_give_one_by_one(algorithm: str, stack: int) -> None:
    """Three rounds by some of the workers: their counts of steps, and what they kept, come apart."""
    task, state = digits(), {"params": initial_parameters(digits(), 0)}
    together, alone = stacked_trainer(task, stack), one_by_one(task)
    kept: dict[int, Kept | None] = {}
    for version, workers in enumerate(([0, 1, 3], [0, 2, 3, 4], [0, 1, 2, 3, 4])):
        jobs = jobs_of(algorithm, version, kept, workers)
        found = together.train(jobs, state)
        expected = [alone[job.worker].train(job.assignment, state, job.kept) for job in jobs]
        for job, each, own in zip(jobs, found, expected, strict=True):
            assert_same(each, own)
            kept[job.worker] = own.kept
        sent = expected[0].bundles
        if "gradient" in sent:
            state = state | {"gradient": sent["gradient"]}
        if "delta" in sent:
            moved = {name: values + sent["delta"][name] for name, values in state["params"].items()}
            state = state | {"params": moved}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_the_server_sends_down_is_the_same_for_all_workers_of_a_stack(algorithm: str) -> None:
    params = initial_parameters(digits(), 0)
    state = {"params": params}
    for number, bundle in enumerate(ALGORITHMS[algorithm].state_bundles):
        low = 0.0 if bundle == "hessian" else -0.1
        state[bundle] = a_bundle(number, low, 0.1)
    for version in (0, 1):
        jobs = jobs_of(algorithm, version, {}, [0, 1, 2, 3, 4])
        found = stacked_trainer(digits(), WORKERS).train(jobs, state)
        for job, each in zip(jobs, found, strict=True):
            assert_same(each, one_by_one(digits())[job.worker].train(job.assignment, state, None))


class Tempered(nn.Linear):
    """Its temperature, a parameter of no dimension, is learned too."""

    def __init__(self) -> None:
        super().__init__(64, 10)
        self.temperature = nn.Parameter(torch.tensor(1.0))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs) / self.temperature


class Regression(OnDigits):
    likelihood = "gaussian"

    def training_data(self) -> Examples:
        examples = super().training_data()
        return Examples(examples.inputs, examples.inputs[:, 20:30] + examples.targets[:, None])


@pytest.mark.parametrize(
    "task", [OnDigits(Tempered), Regression(lambda: nn.Linear(64, 10))], ids=["scalar", "numbers"]
)
@pytest.mark.parametrize("algorithm", ["fed-sophia", "fed-sophia-shared"])
def test_models_of_other_kinds_are_stacked_too(algorithm: str, task: Task) -> None:
    rows = [np.arange(100 * index, 100 * index + 100) for index in range(3)]
    examples, state = task.training_data(), {"params": initial_parameters(task, 0)}
    together = StackedTrainer(task, examples, rows, CPU, stack=3, threads=1)
    jobs = jobs_of(algorithm, 0, {}, [0, 1, 2])
    for job, own, found in zip(jobs, rows, together.train(jobs, state), strict=True):
        alone = Trainer(task, examples.batch(own), CPU)
        assert_same(found, alone.train(job.assignment, state, None))


class InBfloat16(nn.Module):
    """Takes no other parameters: its product is of two bfloat16 factors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10, dtype=torch.bfloat16)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(inputs.bfloat16())
        return logits


def test_a_model_of_bfloat16_parameters_is_stacked_as_it_is_and_trains_by_float32_ones() -> None:
    task = OnDigits(InBfloat16)
    state = {"params": initial_parameters(task, 0)}
    jobs = jobs_of("fedavg", 0, {}, [0, 1, 2])
    for job, found in zip(jobs, stacked_trainer(task, WORKERS).train(jobs, state), strict=True):
        expected = one_by_one(task)[job.worker].train(job.assignment, state, None)
        for name, values in expected.bundles["delta"].items():
            # gradients are rounded to three digits, and added up in another order
            np.testing.assert_allclose(found.bundles["delta"][name], values, atol=0.02 * np.abs(values).max())


class Draws(nn.Module):
    """Dropout by a function: no layer of the model says so."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(inputs, 0.5, self.training)


def test_threads_never_share_the_draws_of_a_model_that_draws() -> None:
    task = OnDigits(lambda: nn.Sequential(nn.Linear(64, 32), Draws(), nn.Linear(32, 10)))
    params = initial_parameters(task, 0)
    before = torch.get_rng_state()
    trainer = stacked_trainer(task, 1, threads=3)
    jobs = jobs_of("fedavg", 1, {}, [0, 1, 2, 3, 4])
    first, *others = [trainer.train(jobs, {"params": params}) for _ in range(4)]
    for other in others:
        for each, again in zip(first, other, strict=True):
            for name, values in each.bundles["delta"].items():
                np.testing.assert_array_equal(values, again.bundles["delta"][name])
    assert torch.equal(torch.get_rng_state(), before)


def test_threads_and_the_size_of_stacks_change_rounding_at_most() -> None:
    task, params = digits(), initial_parameters(digits(), 0)
    jobs = jobs_of("fed-sophia-shared", 0, {}, [0, 1, 2, 3, 4])
    expected = stacked_trainer(task, WORKERS).train(jobs, {"params": params})
    for stack, threads in ((1, 2), (2, 2), (WORKERS, 3)):
        found = stacked_trainer(task, stack, threads).train(jobs, {"params": params})
        for each, own in zip(found, expected, strict=True):
            assert_same(each, own)


def test_results_stand_in_the_order_of_the_jobs() -> None:
    params = initial_parameters(digits(), 0)
    jobs = jobs_of("fedavg", 1, {}, [0, 1, 2, 3, 4])
    forwards = stacked_trainer(digits(), 2).train(jobs, {"params": params})
    backwards = stacked_trainer(digits(), 2).train(jobs[::-1], {"params": params})
    for each, other in zip(forwards, backwards[::-1], strict=True):
        assert_same(each, other)


def test_a_model_with_dropout_draws_differently_for_each_worker_and_the_same_again_by_the_same_seeds() -> (
    None
):
    task = OnDigits(lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10)))
    params = initial_parameters(task, 0)
    examples = task.training_data()
    trainer = StackedTrainer(task, examples, [np.arange(200)] * 2, CPU, stack=2, threads=2)
    jobs = [
        dataclasses.replace(job, worker=index) for index, job in enumerate(jobs_of("fedavg", 1, {}, [7, 7]))
    ]
    once, again = (trainer.train(jobs, {"params": params}) for _ in range(2))
    for name in params:  # the two workers differ in nothing but their dropout
        assert not np.array_equal(once[0].bundles["delta"][name], once[1].bundles["delta"][name])
        np.testing.assert_array_equal(once[0].bundles["delta"][name], again[0].bundles["delta"][name])


def test_a_loss_that_is_not_finite_is_refused_by_name() -> None:
    params = {name: values * np.float32(1e30) for name, values in initial_parameters(digits(), 0).items()}
    with pytest.raises(NotFinite):
        stacked_trainer(digits(), WORKERS).train(jobs_of("fedavg", 1, {}, [0, 1]), {"params": params})


def test_a_model_that_cannot_be_copied_is_refused_where_there_is_to_be_one_for_each_thread() -> None:
    class Locked(nn.Linear):
        def __init__(self) -> None:
            super().__init__(64, 10)
            self.lock = threading.Lock()

    task = OnDigits(Locked)
    assert stacked_trainer(task, 2, threads=1).stack == 2
    with pytest.raises(InvalidTask, match="task on-digits: TypeError: cannot pickle"):
        stacked_trainer(task, 2, threads=2)


def test_targets_that_are_padding_are_refused() -> None:
    examples, rows = parts(digits())
    targets = examples.targets.clone()
    targets[0] = -100
    with pytest.raises(InvalidTask, match="padding"):
        StackedTrainer(digits(), Examples(examples.inputs, targets), rows, CPU, stack=2, threads=1)
