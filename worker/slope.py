# SPDX-License-Identifier: Apache-2.0
"""What a mini-batch says of the loss where the parameters are, as far as an optimizer wants to know it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from worker.curvature import hessian_vector_product
from worker.optimizers.base import Optimizer, Tensors


class Slope(NamedTuple):
    """The loss around the parameters; neither has a graph."""

    gradients: Tensors
    curvature: Tensors | None
    """What the optimizer's next step wants of it."""


def slope_at(
    parameters: Tensors, loss: Tensor, optimizer: Optimizer, estimate: Callable[[], Sequence[Tensor]]
) -> Slope:
    """Go back through a loss, whose graph is used up: for its gradient, and for what else is wanted.

    Args:
        loss: a scalar; of workers that step together, the sum of theirs, since none depends on another's
            parameters.
        estimate: gives the diagonal of the Hessian and keeps the graph; called if it is wanted.
    """
    curvature = tuple(estimate()) if optimizer.wants_hessian else None
    vector = optimizer.vector
    if vector is None:
        return Slope(torch.autograd.grad(loss, parameters, materialize_grads=True), curvature)
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    product = tuple(hessian_vector_product(gradients, parameters, vector))
    return Slope(tuple(gradient.detach() for gradient in gradients), product)
