# SPDX-License-Identifier: Apache-2.0
"""A loss's curvature: estimates of its diagonal, and products with it. Pure: chance comes with the objective.

Each estimates the diagonal of the curvature of the mean loss over B terms, from a forward pass of training.

Gauss–Newton–Bartlett, never negative:

    ŷ_b ~ p(· | outputs_b)                   for each of the B loss terms
    ĝ = ∇ (1/B) Σ_b ℓ(outputs_b, ŷ_b)
    ĥ = B·ĝ⊙ĝ,      E[ĥ] = diagonal of the Gauss–Newton matrix

Empirical Fisher, never negative: the same with the true labels for ŷ, so ĝ is the step's own gradient. It is
free, and estimates no curvature where the model does not fit its labels (Kunstner et al. 2019,
arXiv 1905.12558).

Hutchinson, of either sign:

    ĥ = v ⊙ H·v,    v of ±1                   E[ĥ] = diagonal of the Hessian

Source: Liu et al. 2023 (arXiv 2305.14342), Algorithms 1 and 2. Where we differ: the estimate is taken on the
outputs of the training step it falls on (one forward pass, two backward passes), or on the first of its
examples alone, in a pass of their own, where the paper draws another mini-batch; and B counts loss terms,
which are tokens for a language model, without padding.

Hessian-vector product:

    H·v = ∇⟨∇ℓ, v⟩                            exact, by a second backward pass through the first

Source: Pearlmutter 1994 (Fast exact multiplication by the Hessian), with two reverse passes in place of his
forward one.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from protocol.errors import InvalidMessage


class Objective(Protocol):
    """What is made small, and where chance in an estimate comes from; of one worker or of several."""

    def outputs(self, inputs: Tensor) -> Tensor:
        """The model's."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean over the loss terms, a scalar; of several workers the sum of their means."""
        ...

    def drawn(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Targets drawn from the model's own predictive distribution."""
        ...

    def signs(self, like: Tensor) -> Tensor:
        """Numbers drawn from -1 and 1, of this shape and type."""
        ...


class Pass(NamedTuple):
    """A forward pass over some of the examples of an estimate."""

    outputs: Tensor
    """With their graph."""
    targets: Tensor
    weight: float
    """Its share of the loss terms of all passes."""
    gradients: Sequence[Tensor]
    """Of its mean loss, times `weight`; empty where the estimator uses none."""


class Estimator(Protocol):
    """Estimates the diagonal of the curvature of the mean loss over some passes, one after the other."""

    @property
    def draws_labels(self) -> bool:
        """Whether it goes back through a pass by labels of its own, and needs no gradients."""
        ...

    @property
    def second_order(self) -> bool:
        """Whether it goes back through the gradients, which then have a graph."""
        ...

    def of_pass(
        self, passed: Pass, parameters: Sequence[Tensor], objective: Objective, num_terms: int
    ) -> Sequence[Tensor]:
        """Give what is summed over the passes: a tensor for each parameter.

        Args:
            num_terms: B, the loss terms of all passes.
        """
        ...

    def estimate(self, total: Tensor, num_terms: int) -> Tensor:
        """Make ĥ of the sum over all passes, in place of it.

        Returns:
            NaN where a loss was NaN or infinite; zeros where the outputs do not depend on a parameter.
        """
        ...


class GaussNewtonBartlett:
    """Of labels that are drawn from the model; the true ones say only which of them are padding."""

    draws_labels = True
    second_order = False

    def of_pass(
        self, passed: Pass, parameters: Sequence[Tensor], objective: Objective, num_terms: int
    ) -> Sequence[Tensor]:
        with torch.no_grad():
            drawn = objective.drawn(passed.outputs, passed.targets)
        # √B here, where it is one product: B·ĝ⊙ĝ afterwards would be one more pass over memory
        loss = objective.loss(passed.outputs, drawn) * (passed.weight * math.sqrt(num_terms))
        return torch.autograd.grad(loss, parameters, materialize_grads=True)

    def estimate(self, total: Tensor, num_terms: int) -> Tensor:
        return total.square_()


class EmpiricalFisher:
    """Of the labels there are."""

    draws_labels = False
    second_order = False

    def of_pass(
        self, passed: Pass, parameters: Sequence[Tensor], objective: Objective, num_terms: int
    ) -> Sequence[Tensor]:
        return passed.gradients

    def estimate(self, total: Tensor, num_terms: int) -> Tensor:
        return total.square_().mul_(num_terms)


class Hutchinson:
    """Of the Hessian's product with random signs, other ones in each pass."""

    draws_labels = False
    second_order = True

    def of_pass(
        self, passed: Pass, parameters: Sequence[Tensor], objective: Objective, num_terms: int
    ) -> Sequence[Tensor]:
        signs = [objective.signs(parameter.detach()) for parameter in parameters]
        products = hessian_vector_product(passed.gradients, parameters, signs)
        return torch._foreach_mul(products, signs)

    def estimate(self, total: Tensor, num_terms: int) -> Tensor:
        return total


ESTIMATORS: dict[str, Estimator] = {
    "gauss-newton-bartlett": GaussNewtonBartlett(),
    "empirical-fisher": EmpiricalFisher(),
    "hutchinson": Hutchinson(),
}


def estimator_named(name: str) -> Estimator:
    """Give the estimator with this name.

    Raises:
        InvalidMessage: there is none.
    """
    try:
        return ESTIMATORS[name]
    except KeyError:
        raise InvalidMessage(f"estimator {name!r}: this worker has {', '.join(ESTIMATORS)}") from None


def hessian_vector_product(
    gradients: Sequence[Tensor], parameters: Sequence[Tensor], vector: Sequence[Tensor]
) -> list[Tensor]:
    """Multiply the Hessian of a loss with a vector.

    Args:
        gradients: of the loss, made with `create_graph`; the graph is used up.
        vector: one tensor for each parameter, of its shape.

    Returns:
        For each parameter its part of H·v: same shape and type; zeros where the loss does not bend.
    """
    # a gradient that depends on no parameter has no graph to go back through
    pairs = [(gradient, v) for gradient, v in zip(gradients, vector, strict=True) if gradient.requires_grad]
    if not pairs:
        return [torch.zeros_like(parameter) for parameter in parameters]
    outputs, weights = zip(*pairs, strict=True)
    return list(torch.autograd.grad(outputs, parameters, weights, materialize_grads=True))
