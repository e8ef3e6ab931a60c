# SPDX-License-Identifier: Apache-2.0
"""A model's forward pass with many workers' parameters at once.

vmap alone gives the same numbers, but for embeddings with a row of padding. What else stands beside it here
are the layers of which a processor makes much slower work that way than of each worker's layer by itself.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import embedding, linear
from torch.overrides import TorchFunctionMode

from worker.optimizers.base import Tensors
from worker.tasks.base import one_tensor

Convolution = Callable[..., Tensor]
_CONVOLUTIONS: tuple[Convolution, ...] = (torch.conv1d, torch.conv2d, torch.conv3d)


def stacked_outputs(model: nn.Module, names: tuple[str, ...], parameters: Tensors, inputs: Tensor) -> Tensor:
    """Give each worker's outputs, shape (K, B, …).

    Args:
        model: gives the computation; its own parameters of these names have no part in it. One call at a
            time: it puts the parameters it is given into the module.
        names: of the parameters.
        parameters: in the order of the names, each of shape (K, …).
        inputs: each worker's mini-batch, shape (K, B, …).
    """

    def outputs_of_one(own: Tensors, of_one: Tensor) -> Tensor:
        return one_tensor(functional_call(model, dict(zip(names, own, strict=True)), (of_one,)))

    with _OurLayers():
        stacked: Tensor = vmap(outputs_of_one, randomness="different")(parameters, inputs)
    return stacked


class _OurLayers(TorchFunctionMode):
    """Puts layers of ours where a model's code says linear, embedding or, on a CPU, conv."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        if func is linear and not kwargs and args[0].ndim > 1 and args[1].ndim > 1:
            return linear_by_rows(*args)
        if func is embedding and kwargs and kwargs["padding_idx"] is not None:
            return padded_embedding(*args, **kwargs)
        if func in _CONVOLUTIONS and not kwargs and args[0].device.type == "cpu":
            each: Tensor = _ConvolutionOfEach.apply(func, *args)  # type: ignore[no-untyped-call]
            return each
        return func(*args, **kwargs or {})


def linear_by_rows(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute W·xᵀ where a linear layer computes x·Wᵀ: the same numbers, transposed.

    vmap gives W of x·Wᵀ a gradient whose rows do not lie one behind the other, and each of an optimizer's
    many passes over it then takes five to ten times as long.
    """
    outputs = (weight @ inputs.reshape(-1, inputs.shape[-1]).mT).mT
    outputs = outputs.reshape(*inputs.shape[:-1], len(weight))
    return outputs if bias is None else outputs + bias


def padded_embedding(inputs: Tensor, weight: Tensor, padding_idx: int, **others: Any) -> Tensor:
    """Look rows up, with no gradient for the row of padding.

    vmap (of torch 2.13, for one) heeds `padding_idx` for the first worker alone: the others' rows would move.
    """
    found = embedding(inputs, weight, **others)
    is_padding = inputs == padding_idx % len(weight)
    return torch.where(is_padding.unsqueeze(-1), found.detach(), found)


class _ConvolutionOfEach(torch.autograd.Function):
    """Each worker's convolution by itself: a CPU takes twice as long for one with a group for each worker."""

    @staticmethod
    def forward(convolution: Convolution, *args: Any) -> Tensor:
        return convolution(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing: `vmap` stands for `forward`, and gradients flow through the convolutions in it."""

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[Any], convolution: Convolution, *args: Any) -> tuple[Tensor, int]:
        of_each = [
            [arg] * info.batch_size if dim is None else arg.unbind(dim)
            for arg, dim in zip(args[:3], in_dims[1:4], strict=True)
        ]
        outputs = [convolution(*own, *args[3:]) for own in zip(*of_each, strict=True)]
        return torch.stack(outputs), 0
