# SPDX-License-Identifier: Apache-2.0
"""A model's forward pass with many workers' parameters at once."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from worker.optimizers.base import Tensors


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
        outputs: Tensor = functional_call(model, dict(zip(names, own, strict=True)), (of_one,))
        return outputs

    with _LinearByRows():
        stacked: Tensor = vmap(outputs_of_one, randomness="different")(parameters, inputs)
    return stacked


class _LinearByRows(TorchFunctionMode):
    """Computes W·xᵀ where a linear layer computes x·Wᵀ: the same numbers, transposed.

    vmap gives W of x·Wᵀ a gradient whose rows do not lie one behind the other, and each of an optimizer's
    many passes over it then takes five to ten times as long.
    """

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Tensor, ...] = (),
        kwargs: dict[str, Tensor] | None = None,
    ) -> object:
        if func is not linear or kwargs or args[0].ndim < 2:
            return func(*args, **kwargs or {})
        inputs, weight, *bias = args
        outputs = (weight @ inputs.reshape(-1, inputs.shape[-1]).mT).mT
        outputs = outputs.reshape(*inputs.shape[:-1], len(weight))
        return outputs + bias[0] if bias and bias[0] is not None else outputs
