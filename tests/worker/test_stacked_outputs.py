# SPDX-License-Identifier: Apache-2.0
"""Layers that are stacked in a way of ours: outputs and gradients are those of each worker by itself."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from worker.stacked_outputs import stacked_outputs

WORKERS = 3

torch.set_num_threads(1)


def of_rows(*shape: int) -> Tensor:
    return torch.randint(7, (WORKERS, *shape), generator=torch.Generator().manual_seed(1))


def of_numbers(*shape: int) -> Tensor:
    return torch.randn(WORKERS, *shape, generator=torch.Generator().manual_seed(1))


def looked_up(**settings: object) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Embedding(7, 4, **settings), nn.Tanh(), nn.Linear(4, 3))  # type: ignore[arg-type]


class OneScore(nn.Module):
    """Its weight is a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6))

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.linear(inputs, self.weight)


def in_turn(
    model: nn.Module, names: tuple[str, ...], parameters: tuple[Tensor, ...], inputs: Tensor
) -> Tensor:
    own = [dict(zip(names, each, strict=True)) for each in zip(*parameters, strict=True)]
    return torch.stack([functional_call(model, *each) for each in zip(own, inputs, strict=True)])


@pytest.mark.parametrize(
    ("new_model", "inputs"),
    [
        (looked_up(), of_rows(5, 6)),
        (looked_up(padding_idx=0), of_rows(5, 6)),
        (looked_up(padding_idx=3), of_rows(5)),
        (looked_up(padding_idx=-1, scale_grad_by_freq=True), of_rows(5, 6)),
        (lambda: nn.Linear(6, 4), of_numbers(5, 6)),
        (OneScore, of_numbers(5, 6)),
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)), of_numbers(5, 3, 6)),
        (lambda: nn.Sequential(nn.Conv1d(4, 3, 2), nn.Tanh(), nn.Conv1d(3, 3, 2)), of_numbers(5, 4, 6)),
        (lambda: nn.Conv2d(4, 4, 3, groups=2, padding=1), of_numbers(5, 4, 6, 6)),
    ],
    ids=[
        "embedding",
        "padded",
        "padded-in-the-middle",
        "padded-at-the-end",
        "linear",
        "vector",
        "tokens",
        "conv1d",
        "groups",
    ],
)
def test_stacked_workers_have_the_outputs_and_gradients_of_each_by_itself(
    new_model: Callable[[], nn.Module], inputs: Tensor
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        models = [new_model() for _ in range(WORKERS)]
    names = tuple(name for name, _ in models[0].named_parameters())
    each = [tuple(model.parameters()) for model in models]
    parameters = tuple(torch.stack(own).detach().requires_grad_() for own in zip(*each, strict=True))
    found = stacked_outputs(models[0], names, parameters, inputs)
    expected = in_turn(models[0], names, parameters, inputs)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(3))
    gradients = [
        torch.autograd.grad((outputs.square() * weights).sum(), parameters, create_graph=True)
        for outputs in (found, expected)
    ]
    torch.testing.assert_close(*gradients)
    products = [torch.autograd.grad(sum(g.square().sum() for g in own), parameters) for own in gradients]
    torch.testing.assert_close(*products, rtol=1e-4, atol=1e-4)
