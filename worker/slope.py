# SPDX-License-Identifier: Apache-2.0
"""What a mini-batch says of the loss where the parameters are, as far as an optimizer wants to know it.

A mini-batch may go through the model in parts, so that less of it is in memory at a time: what comes out are
means over all of it. An estimate of the Hessian's diagonal may be of its first examples alone.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from protocol.errors import InvalidTask
from protocol.messages import Assignment
from worker.curvature import Estimator, Objective, Pass, estimator_named, hessian_vector_product
from worker.flat import FlatMean, Layout
from worker.machine import plain_attention
from worker.optimizers.base import Optimizer, Tensors
from worker.tasks.base import Examples
from worker.tasks.likelihood import PADDING


class Part(NamedTuple):
    """A part of a mini-batch, with at least one loss term."""

    inputs: Tensor
    targets: Tensor
    num_terms: int
    is_estimated: bool
    """Whether the estimate is of this part too."""


class Slope(NamedTuple):
    """The loss of a mini-batch around the parameters; nothing here has a graph."""

    loss: Tensor
    gradient: Tensor
    """A flat buffer, as is the curvature."""
    curvature: Tensor | None
    """What the optimizer's next step wants of it."""
    num_terms: int
    """Of the mini-batch; where workers step together, of each."""


@dataclass(frozen=True)
class Wanted:
    """What is to be known beside the gradient: an estimate, a product, or nothing."""

    estimator: Estimator | None = None
    num_estimated: int | None = None
    """So many examples, the first, are those the estimate is of; None: all."""
    vector: Tensors | None = None
    """In the shapes of the parameters."""

    @classmethod
    def by(cls, optimizer: Optimizer, assignment: Assignment, layout: Layout) -> "Wanted":
        """What an optimizer wants for its next step.

        Raises:
            InvalidMessage: the assignment's estimator is unknown.
        """
        if optimizer.wants_hessian:
            return cls(estimator_named(assignment.hessian_estimator), assignment.hessian_batch)
        vector = optimizer.vector
        return cls() if vector is None else cls(vector=layout.views(vector[0]))

    @property
    def second_order(self) -> bool:
        return self.vector is not None or (self.estimator is not None and self.estimator.second_order)


def slope_of(
    parts: Sequence[Part],
    objective: Objective,
    parameters: Tensors,
    layout: Layout,
    wanted: Wanted,
) -> Slope:
    """Go through the model and back with each part.

    Args:
        parts: of one mini-batch, in the order of its examples.
        objective: where the second order is wanted, one whose gradients have gradients but for attention's.
        parameters: the model's own; of workers that step together, stacked.
    """
    with plain_attention() if wanted.second_order else nullcontext():
        return _slope_of(parts, objective, parameters, layout, wanted)


def _slope_of(
    parts: Sequence[Part],
    objective: Objective,
    parameters: Tensors,
    layout: Layout,
    wanted: Wanted,
) -> Slope:
    all_terms = sum(part.num_terms for part in parts)
    estimated_terms = sum(part.num_terms for part in parts if part.is_estimated)
    gradient, curvature, loss = FlatMean(layout), FlatMean(layout), None
    estimator = wanted.estimator
    for part in parts:
        weight = part.num_terms / all_terms
        of_this = estimator if part.is_estimated else None
        outputs = objective.outputs(part.inputs)
        loss_of_part = objective.loss(outputs, part.targets)
        gradients = torch.autograd.grad(
            loss_of_part,
            parameters,
            retain_graph=wanted.second_order or (of_this is not None and of_this.needs_graph),
            create_graph=wanted.second_order,
            materialize_grads=True,
        )
        gradient.add([each.detach() for each in gradients], weight)
        if wanted.vector is not None:
            curvature.add(hessian_vector_product(gradients, parameters, wanted.vector), weight)
        elif of_this is not None:
            of_pass = of_this.of_pass(Pass(outputs, part.targets, gradients), parameters, objective)
            curvature.add(of_pass, part.num_terms / estimated_terms)
        # of what has been gone through, nothing stays while the next part is
        del outputs, gradients
        share = loss_of_part.detach() * weight
        loss = share if loss is None else loss + share
    assert loss is not None and gradient.flat is not None, "a mini-batch without a part"
    found = curvature.flat
    if estimator is not None and found is not None:
        found = estimator.estimate(found, estimated_terms)
    return Slope(loss, gradient.flat, found, all_terms)


def parts_of(
    batch: Examples, at_most: int | None, wanted: Wanted, num_terms: Callable[[Tensor], int], *, dim: int = 0
) -> list[Part]:
    """Cut a mini-batch into parts of `at_most` examples; all of it is one where that is None.

    Args:
        num_terms: how many loss terms some targets are. A part without any is left out.
        dim: the one that counts the examples.

    Raises:
        InvalidTask: there is no loss term, or none that an estimate could be of.
    """
    size = batch.inputs.shape[dim]
    step = size if at_most is None else at_most
    estimated = 0 if wanted.estimator is None else min(wanted.num_estimated or size, size)
    cuts = [*range(0, estimated, step), *range(estimated, size, step), size]
    parts = []
    for first, last in pairwise(cuts):
        inputs, targets = batch.inputs, batch.targets
        if last - first < size:
            inputs, targets = (each.narrow(dim, first, last - first) for each in (inputs, targets))
        if terms := num_terms(targets):
            parts.append(Part(inputs, targets, terms, last <= estimated))
    if not parts or (estimated and not parts[0].is_estimated):
        raise InvalidTask(
            f"targets: every one of {estimated if parts else size} examples is {PADDING}, padding"
        )
    return parts
