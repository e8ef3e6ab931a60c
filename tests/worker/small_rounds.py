# SPDX-License-Identifier: Apache-2.0
"""A trainer on some of the digits, and rounds small enough for a test."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from protocol.algorithms import ALGORITHMS
from protocol.messages import Assignment
from worker.model import Arrays
from worker.tasks import load_task
from worker.tasks.base import Examples, Task
from worker.training import Trainer, initial_parameters

CPU = torch.device("cpu")
Made = TypeVar("Made")


@cache
def digits() -> Task:
    return load_task("digits")


class OnDigits(Task):
    """The digits under a model of a test's own."""

    name = "on-digits"

    def __init__(self, model: Callable[[], nn.Module]) -> None:
        super().__init__()
        self._new_model = model

    def model(self) -> nn.Module:
        return self._new_model()

    def training_data(self) -> Examples:
        return digits().training_data()

    def evaluation_data(self) -> Examples:
        return digits().evaluation_data()


def a_trainer(task: Task | None = None) -> Trainer:
    task = task or digits()
    return Trainer(task, task.training_data().batch(torch.arange(200)), CPU)


def an_assignment(
    algorithm: str = "fed-sophia-shared",
    *,
    seed: int = 3,
    version: int = 1,
    local_steps: int = 10,
    **hyperparameters: float,
) -> Assignment:
    row = ALGORITHMS[algorithm]
    values = row.parse(hyperparameters)
    return Assignment(
        assignment_id="a1",
        run_id="r1",
        round=version + 1,
        version=version,
        slot=0,
        phase=row.phase_of(version),
        task="digits",
        tensors={},
        bundles=values.bundles_wanted(version),
        encodings={},
        optimizer=row.optimizer,
        settings=values.optimizer_settings(local_steps),
        local_steps=local_steps,
        batch_size=32,
        seed=seed,
        deadline_ms=0,
    )


def a_bundle(seed: int, low: float, high: float) -> Arrays:
    rng = np.random.default_rng(seed)
    shapes = {name: array.shape for name, array in initial_parameters(digits(), 0).items()}
    return {name: rng.uniform(low, high, shape).astype(np.float32) for name, shape in shapes.items()}


def a_state(algorithm: str) -> dict[str, Arrays]:
    state = {"params": initial_parameters(digits(), 0)}
    if algorithm == "fed-sophia-shared":
        state |= {"direction": a_bundle(1, -1, 1), "hessian": a_bundle(2, 0, 0.1)}
    return state


def assert_same_bits(first: dict[str, Arrays], second: dict[str, Arrays]) -> None:
    assert list(first) == list(second)
    for bundle in first:
        assert list(first[bundle]) == list(second[bundle])
        assert all(first[bundle][name].tobytes() == second[bundle][name].tobytes() for name in first[bundle])


def in_a_thread_of_its_own(work: Callable[[], Made]) -> Made:
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(work).result()
