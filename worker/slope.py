# SPDX-License-Identifier: Apache-2.0
"""What a mini-batch says of the loss where the parameters are, as far as an optimizer wants to know it.

A mini-batch may go through the model in parts, so that less of it is in memory at a time: what comes out are
means over all of it. An estimate of the Hessian's diagonal shares these passes, or is of the first examples
alone and has passes of its own. To share theirs, these few would have to go back apart from the others also
for the gradient; and what a way back costs for each parameter is more than a forward pass of a few examples.
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
from worker.flat import FlatSum, Layout
from worker.machine import plain_attention
from worker.optimizers.base import Optimizer, Tensors
from worker.tasks.base import Examples
from worker.tasks.likelihood import PADDING


class Part(NamedTuple):
    """A part of a mini-batch, with at least one loss term."""

    inputs: Tensor
    targets: Tensor
    num_terms: int
    """Where workers step together, of each."""


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
    """So many examples, the first, are those the estimate is of; None: all, and it shares their passes."""
    vector: Tensors | None = None
    """In the shapes of the parameters."""

    @classmethod
    def by(cls, optimizer: Optimizer, assignment: Assignment, layout: Layout) -> "Wanted":
        """What an optimizer wants for its next step.

        Raises:
            InvalidMessage: the assignment's estimator is unknown.
        """
        if optimizer.wants_hessian:
            few = assignment.hessian_batch
            if few is not None and few >= assignment.batch_size:
                few = None
            return cls(estimator_named(assignment.hessian_estimator), few)
        vector = optimizer.vector
        return cls() if vector is None else cls(vector=layout.views(vector[0]))

    @property
    def second_order(self) -> bool:
        return self.vector is not None or (self.estimator is not None and self.estimator.second_order)


class Model(NamedTuple):
    """What is gone through."""

    objective: Objective
    """Where the second order is wanted, one whose gradients have gradients but for attention's."""
    parameters: Tensors
    """The model's own; of workers that step together, stacked."""
    layout: Layout


def slope_of(parts_of_first: Callable[[int | None], Sequence[Part]], wanted: Wanted, model: Model) -> Slope:
    """Go through the model and back with a mini-batch.

    Args:
        parts_of_first: gives the parts of its first so many examples, or of all.
    """
    with plain_attention() if wanted.second_order else nullcontext():
        if wanted.estimator is None or wanted.num_estimated is None:
            parts = parts_of_first(None)
            # the same mini-batch comes again at the next step
            return _shared(_kept(parts) if wanted.vector is not None else parts, wanted, model)
        few = _kept(parts_of_first(wanted.num_estimated))
        slope = _shared(parts_of_first(None), Wanted(), model)
        return slope._replace(curvature=_estimate(few, wanted.estimator, model))


def _kept(parts: Sequence[Part]) -> list[Part]:
    """Copies: a model may write into its inputs, and these are gone through a second time."""
    return [part._replace(inputs=part.inputs.clone()) for part in parts]


def _shared(parts: Sequence[Part], wanted: Wanted, model: Model) -> Slope:
    """The slope, what is wanted beside it taken in the same passes."""
    objective, parameters, layout = model
    num_terms = sum(part.num_terms for part in parts)
    gradient, curvature = FlatSum(layout), FlatSum(layout)
    estimator, loss = wanted.estimator, None
    for part in parts:
        weight = part.num_terms / num_terms
        outputs = objective.outputs(part.inputs)
        share = objective.loss(outputs, part.targets)
        if weight != 1:
            share = share * weight
        gradients = torch.autograd.grad(
            share,
            parameters,
            retain_graph=wanted.second_order or (estimator is not None and estimator.draws_labels),
            create_graph=wanted.second_order,
            materialize_grads=True,
        )
        loss = share.detach() if loss is None else loss + share.detach()
        gradient.add([each.detach() for each in gradients])
        # what has been used is let go of at once: a loss's graph is as large as the outputs, and gradients as
        # the model
        del share
        if wanted.vector is not None:
            curvature.add(hessian_vector_product(gradients, parameters, wanted.vector))
        elif estimator is not None:
            if estimator.draws_labels:
                gradients = ()
            passed = Pass(outputs, part.targets, weight, gradients)
            curvature.add(estimator.of_pass(passed, parameters, objective, num_terms))
            del passed
        del outputs, gradients
    assert loss is not None and gradient.flat is not None, "a mini-batch without a part"
    found = curvature.flat
    if estimator is not None and found is not None:
        found = estimator.estimate(found, num_terms)
    return Slope(loss, gradient.flat, found, num_terms)


def _estimate(parts: Sequence[Part], estimator: Estimator, model: Model) -> Tensor:
    """An estimate in passes of its own."""
    objective, parameters, layout = model
    num_terms = sum(part.num_terms for part in parts)
    total = FlatSum(layout)
    for part in parts:
        weight = part.num_terms / num_terms
        gradients: Tensors = ()
        outputs = objective.outputs(part.inputs)
        if not estimator.draws_labels:
            gradients = torch.autograd.grad(
                objective.loss(outputs, part.targets) * weight,
                parameters,
                create_graph=estimator.second_order,
                materialize_grads=True,
            )
        passed = Pass(outputs, part.targets, weight, gradients)
        total.add(estimator.of_pass(passed, parameters, objective, num_terms))
        del outputs, gradients, passed
    assert total.flat is not None, "an estimate without a part"
    return estimator.estimate(total.flat, num_terms)


def parts_of(
    batch: Examples,
    first: int | None,
    at_most: int | None,
    num_terms: Callable[[Tensor], int],
    *,
    dim: int = 0,
) -> list[Part]:
    """Cut a mini-batch into parts.

    Args:
        first: so many examples of it, the first; None: all.
        at_most: so many examples a part; None: all in one.
        num_terms: how many loss terms some targets are. A part without any is left out.
        dim: the one that counts the examples.

    Raises:
        InvalidTask: there is no loss term.
    """
    size = batch.inputs.shape[dim]
    end = size if first is None else min(first, size)
    parts = []
    for begin, until in pairwise([*range(0, end, end if at_most is None else at_most), end]):
        inputs, targets = batch.inputs, batch.targets
        if until - begin < size:
            inputs, targets = (each.narrow(dim, begin, until - begin) for each in (inputs, targets))
        if terms := num_terms(targets):
            parts.append(Part(inputs, targets, terms))
    if not parts:
        raise InvalidTask(f"targets: every one of {end} examples is {PADDING}, padding")
    return parts
