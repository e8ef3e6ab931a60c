# SPDX-License-Identifier: Apache-2.0
"""The loop of a round: what it holds while the next step is computed."""

import gc
from contextlib import suppress
from dataclasses import dataclass, replace
from weakref import ReferenceType, ref

import pytest
import torch
from torch import Tensor, nn

from tests.worker.small_rounds import CPU, OnDigits, an_assignment, digits
from worker.local_steps import local_steps
from worker.meter import Meter
from worker.optimizers.base import Optimizer, PlainSteps, Tensors
from worker.slope import Slope
from worker.stacked import Job, StackedTrainer
from worker.tasks.base import Examples
from worker.training import Trainer, initial_parameters


@dataclass(frozen=True)
class Remembering(PlainSteps):
    """Stands still, and has a new state after each step."""

    state: Tensor

    def step(self, parameters: Tensors, gradients: Tensors, curvature: Tensors | None) -> "Remembering":
        return replace(self, state=self.state + 1)


def test_of_the_steps_before_nothing_is_held_but_the_parameters_and_the_last_state() -> None:
    """Gradients, estimates and states are each as large as the model."""
    earlier: list[ReferenceType[Tensor]] = []
    held: list[int] = []

    def begin() -> Optimizer:
        return Remembering(torch.zeros(4))

    def slope_at(batch: Examples, optimizer: Optimizer) -> Slope:
        assert isinstance(optimizer, Remembering)
        held.append(sum(each() is not None for each in earlier))
        slope = Slope(torch.ones(()), torch.ones(4), torch.ones(4), 1)
        assert slope.curvature is not None
        earlier.extend(ref(each) for each in (slope.gradient, slope.curvature, optimizer.state))
        return slope

    batch = Examples(torch.zeros(1), torch.zeros(1))
    assignment = an_assignment(local_steps=4)
    local_steps(assignment, begin, torch.zeros(4), lambda: batch, slope_at, Meter(CPU), None)
    assert held == [0, 0, 0, 0]


def buffers_of(nbytes: int) -> int:
    """How many stretches of memory of this size tensors have."""
    memory = {}
    for each in gc.get_objects():
        if type(each) is Tensor:
            with suppress(NotImplementedError):  # vmap's have none of their own
                memory[each.untyped_storage().data_ptr()] = each.untyped_storage().nbytes()
    return list(memory.values()).count(nbytes)


@pytest.mark.parametrize("workers", [1, 3])
def test_fed_sophia_holds_three_times_the_model_in_a_forward_pass_beside_what_it_was_given(
    workers: int,
) -> None:
    """m, h, and where the round began; of a stack, which begins in one place, m, h and the parameters."""
    num_parameters = 64 * 11 + 11 + 11 * 10 + 10
    found: list[int] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(64, 11), nn.Linear(11, 10))

        def forward(self, inputs: Tensor) -> Tensor:
            found.append(buffers_of(4 * num_parameters * workers))
            logits: Tensor = self.layers(inputs)
            return logits

    task, examples = OnDigits(Watched), digits().training_data()
    state = {"params": initial_parameters(task, 0)}
    assignment = an_assignment("fed-sophia", local_steps=4, hessian_every=2)
    if workers == 1:
        trainer = Trainer(task, examples, CPU)
        kept = trainer.train(assignment, state, None).kept
        before = buffers_of(4 * num_parameters)
        trainer.train(assignment, state, kept)
    else:
        rows = [torch.arange(100).numpy()] * workers
        stacks = StackedTrainer(task, examples, rows, CPU, stack=workers, threads=1)
        several = stacks.train([Job(i, assignment, None) for i in range(workers)], state)
        kept_by_each = [each.kept for each in several]
        del several
        before = buffers_of(4 * num_parameters * workers)
        stacks.train([Job(i, assignment, kept) for i, kept in enumerate(kept_by_each)], state)
    assert [number - before for number in found[-4:]] == [3, 3, 3, 3]
