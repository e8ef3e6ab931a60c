# SPDX-License-Identifier: Apache-2.0
"""A device whose memory does not suffice for a stack trains smaller ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from protocol.errors import InvalidTask
from tests.worker.small_rounds import CPU, OnDigits, an_assignment
from worker.stacked import Job, StackedTrainer
from worker.training import Trained, Trainer, initial_parameters

WORKERS = 7
torch.set_num_threads(1)


def a_narrow_place(room: int) -> tuple[OnDigits, list[int]]:
    """The digits under a model that has room for so many workers, and how many it was asked to hold."""
    asked: list[int] = []

    class Room(torch.autograd.Function):
        """What it is given; as vmap's own rule it is told of how many workers that is."""

        @staticmethod
        def forward(inputs: torch.Tensor) -> torch.Tensor:
            if room == 0:
                raise torch.OutOfMemoryError("no room at all")
            return inputs.clone()

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None: ...

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient

        @staticmethod
        def vmap(info: Any, in_dims: Sequence[Any], inputs: torch.Tensor) -> tuple[torch.Tensor, Any]:
            asked.append(info.batch_size)
            if info.batch_size > room:
                raise torch.OutOfMemoryError(f"no room for {info.batch_size}")
            return inputs.clone(), in_dims[0]

    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 10)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            held: torch.Tensor = Room.apply(self.linear(inputs))  # type: ignore[no-untyped-call]
            return held

    return OnDigits(Narrow), asked


def trained_with(
    room: int, *, stack: int = WORKERS, threads: int = 1
) -> tuple[StackedTrainer, list[Trained]]:
    task, _ = a_narrow_place(room)
    rows = [np.arange(50) + 50 * worker for worker in range(WORKERS)]
    trainer = StackedTrainer(task, task.training_data(), rows, CPU, stack=stack, threads=threads)
    return trainer, trainer.train(jobs(), {"params": initial_parameters(task, 0)})


def jobs() -> list[Job]:
    assignment = an_assignment("fedavg", local_steps=2)
    return [
        Job(worker, assignment.model_copy(update={"slot": worker, "seed": worker}), None)
        for worker in range(WORKERS)
    ]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("room", [3, 2, 1])
def test_a_stack_that_does_not_fit_is_done_in_halves_with_the_same_results(room: int, threads: int) -> None:
    shrunk, found = trained_with(room, threads=threads)
    _, expected = trained_with(WORKERS)
    assert 1 <= shrunk.stack <= room
    for each, own in zip(found, expected, strict=True):
        for name, values in own.bundles["delta"].items():
            np.testing.assert_allclose(each.bundles["delta"][name], values, rtol=1e-5, atol=1e-7)


def test_what_did_not_fit_once_is_not_tried_again() -> None:
    task, asked = a_narrow_place(3)
    rows = [np.arange(50) + 50 * worker for worker in range(WORKERS)]
    trainer = StackedTrainer(task, task.training_data(), rows, CPU, stack=WORKERS, threads=1)
    params = initial_parameters(task, 0)
    trainer.train(jobs(), {"params": params})
    assert asked[0] == WORKERS
    asked.clear()
    trainer.train(jobs(), {"params": params})
    assert max(asked) <= trainer.stack == 3


def test_memory_that_does_not_suffice_for_one_worker_is_an_error_with_a_name() -> None:
    with pytest.raises(InvalidTask, match="out of memory on cpu"):
        trained_with(0)


def test_stacks_that_fit_stay_as_large_as_was_asked() -> None:
    trainer, found = trained_with(WORKERS, stack=3)
    assert trainer.stack == 3
    task, _ = a_narrow_place(WORKERS)
    alone = Trainer(task, task.training_data().batch(torch.arange(50)), CPU)
    expected = alone.train(jobs()[0].assignment, {"params": initial_parameters(task, 0)}, None)
    for name, values in expected.bundles["delta"].items():
        np.testing.assert_allclose(found[0].bundles["delta"][name], values, rtol=1e-5, atol=1e-7)
