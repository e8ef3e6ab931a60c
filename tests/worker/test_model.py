# SPDX-License-Identifier: Apache-2.0
"""What of a model is exchanged, what a run begins with, and the device it is put on."""

import pytest
import torch
from torch import nn

from protocol.errors import DeviceUnavailable, InvalidTask, NotFinite
from tests.worker.small_rounds import CPU, OnDigits, an_assignment
from worker.machine import choose_device
from worker.model import ExchangedParameters
from worker.tasks import load_task
from worker.tasks.base import Examples, Task
from worker.training import Trainer, initial_parameters


class OfOneModel(Task):
    name = "of-one-model"

    def training_data(self) -> Examples:
        return load_task("digits").training_data()

    def evaluation_data(self) -> Examples:
        return load_task("digits").evaluation_data()


def test_initial_parameters_follow_from_the_seed_alone_and_leave_torchs_global_generator_as_it_was() -> None:
    before = torch.get_rng_state()
    first, again, other = (initial_parameters(load_task("digits"), seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(first[name].tobytes() == again[name].tobytes() for name in first)
    assert any((first[name] != other[name]).any() for name in first)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            nn.Sequential(nn.Linear(64, 10), nn.BatchNorm1d(10)),
            "persistent buffers .1.running_mean is the first.*persistent=False",
        ),
        (nn.Linear(64, 10).requires_grad_(False), "no parameters to train"),
        (nn.Linear(64, 10, dtype=torch.float64), "weight: expected float32 or bfloat16, got torch.float64"),
    ],
)
def test_a_model_that_cannot_be_exchanged_is_refused_with_the_reason(model: nn.Module, reason: str) -> None:
    class Awkward(OfOneModel):
        def model(self) -> nn.Module:
            return model

    with pytest.raises(InvalidTask, match=reason):
        Trainer(Awkward(), None, torch.device("cpu"))
    with pytest.raises(InvalidTask, match=reason):
        initial_parameters(Awkward(), 0)


def test_a_buffer_that_is_not_persistent_is_a_constant_of_the_model_and_may_stay() -> None:
    class Masked(nn.Linear):
        def __init__(self) -> None:
            super().__init__(64, 10)
            self.register_buffer("mask", torch.ones(10), persistent=False)

    class WithMask(OfOneModel):
        def model(self) -> nn.Module:
            return Masked()

    params = initial_parameters(WithMask(), 0)
    assert list(params) == ["weight", "bias"]
    assert Trainer(WithMask(), None, torch.device("cpu")).evaluate({"params": params}).num_examples == 360


def test_a_model_that_puts_a_parameter_elsewhere_is_refused_where_it_would_stand_still() -> None:
    class Moves(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            self.weight.data = self.weight.data.clone()
            return super().forward(inputs)

    task = OnDigits(lambda: Moves(64, 10))
    trainer, state = Trainer(task, task.training_data(), CPU), {"params": initial_parameters(task, 0)}
    with pytest.raises(InvalidTask, match="weight: the model's code has put it elsewhere in memory"):
        trainer.train(an_assignment("fedavg"), state, None)
    with pytest.raises(InvalidTask, match="weight: the model's code has put it elsewhere in memory"):
        trainer.evaluate(state)


def test_a_model_that_puts_another_parameter_in_the_place_of_one_is_refused() -> None:
    class Replaces(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            self.weight = nn.Parameter(self.weight.detach().clone())
            return super().forward(inputs)

    task = OnDigits(lambda: Replaces(64, 10))
    trainer, state = Trainer(task, task.training_data(), CPU), {"params": initial_parameters(task, 0)}
    with pytest.raises(InvalidTask, match="weight: the model's code has put it elsewhere in memory"):
        trainer.train(an_assignment("fedavg"), state, None)


@pytest.mark.parametrize("late", ["scale", "second.weight"])
def test_a_model_that_makes_a_parameter_when_training_has_begun_is_refused(late: str) -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
            self.second.weight = self.first.weight

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            if late == "scale":
                self.scale = nn.Parameter(torch.ones(64))
            else:  # no longer tied
                self.second.weight = nn.Parameter(self.second.weight.detach().clone())
            logits: torch.Tensor = self.last(self.second(self.first(inputs)))
            return logits

    task = OnDigits(Late)
    trainer, state = Trainer(task, task.training_data(), CPU), {"params": initial_parameters(task, 0)}
    with pytest.raises(InvalidTask, match=f"{late}: the model's code has made it"):
        trainer.train(an_assignment("fedavg"), state, None)


def test_layers_are_tied_by_one_parameter_and_refused_where_two_have_their_values_in_one_place() -> None:
    def tied(by: str) -> nn.Module:
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10))
        first, second, _ = model
        if by == "parameter":
            second.weight = first.weight
        else:
            second.weight.data = first.weight.data
        return model

    names = ["0.weight", "0.bias", "1.bias", "2.weight", "2.bias"]
    assert list(initial_parameters(OnDigits(lambda: tied("parameter")), 0)) == names
    with pytest.raises(InvalidTask, match=r"1.weight: has its values where 0.weight .*same nn.Parameter"):
        initial_parameters(OnDigits(lambda: tied("data")), 0)


def test_parameters_without_gradient_are_not_exchanged() -> None:
    class HalfFrozen(OfOneModel):
        def model(self) -> nn.Module:
            frozen = nn.Linear(64, 16).requires_grad_(False)
            return nn.Sequential(frozen, nn.Linear(16, 10))

    assert list(initial_parameters(HalfFrozen(), 0)) == ["1.weight", "1.bias"]


class RandomFeatures(OfOneModel):
    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(64, 64).requires_grad_(False), nn.ReLU(), nn.Linear(64, 10))


def test_frozen_random_parameters_are_the_same_on_every_worker_and_in_every_run() -> None:
    params = initial_parameters(RandomFeatures(), 5)
    evaluations = []
    for process in range(2):
        torch.manual_seed(process)  # workers are processes of their own, each with torch's chance
        before = torch.get_rng_state()
        trainer = Trainer(RandomFeatures(), None, torch.device("cpu"))
        assert torch.equal(torch.get_rng_state(), before)
        evaluations.append(trainer.evaluate({"params": params}))
    assert evaluations[0] == evaluations[1]


def test_what_float32_cannot_hold_is_refused() -> None:
    exchanged = ExchangedParameters.of(nn.Linear(2, 1, bias=False))
    with pytest.raises(NotFinite, match="delta/weight"):
        exchanged.arrays_of("delta", torch.tensor([3e38, 0.0]) - torch.tensor([-3e38, 0.0]))


def test_a_device_is_chosen_by_name_and_a_missing_one_is_refused_with_those_there_are() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in {"cpu", "cuda", "mps"}
    for name in ("cuda:99", "tpu", "cpu:3"):
        with pytest.raises(DeviceUnavailable, match="this machine has cpu"):
            choose_device(name)
