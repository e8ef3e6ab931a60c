# SPDX-License-Identifier: Apache-2.0
"""What of a model is exchanged, what a run begins with, and the device it is put on."""

import pytest
import torch
from torch import nn

from protocol.errors import DeviceUnavailable, InvalidTask
from worker.tasks import Examples, Task, load_task
from worker.training import Trainer, choose_device, initial_parameters


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
        (nn.Sequential(nn.Linear(64, 10), nn.BatchNorm1d(10)), "buffers .1.running_mean is the first"),
        (nn.Linear(64, 10).requires_grad_(False), "no parameters to train"),
        (nn.Linear(64, 10, dtype=torch.float64), "weight: expected float32, got torch.float64"),
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


def test_parameters_without_gradient_are_not_exchanged() -> None:
    class HalfFrozen(OfOneModel):
        def model(self) -> nn.Module:
            frozen = nn.Linear(64, 16).requires_grad_(False)
            return nn.Sequential(frozen, nn.Linear(16, 10))

    assert list(initial_parameters(HalfFrozen(), 0)) == ["1.weight", "1.bias"]


def test_a_device_is_chosen_by_name_and_a_missing_one_is_refused_with_those_there_are() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in {"cpu", "cuda", "mps"}
    for name in ("cuda:99", "tpu", "cpu:3"):
        with pytest.raises(DeviceUnavailable, match="this machine has cpu"):
            choose_device(name)
