# SPDX-License-Identifier: Apache-2.0
"""A loss's curvature: estimates of its diagonal, and products with it. Pure: randomness as an argument.

Gauss–Newton–Bartlett:

    ŷ_b ~ p(· | outputs_b)                   for each of the B loss terms of a mini-batch
    ĝ = ∇ (1/B) Σ_b ℓ(outputs_b, ŷ_b)
    ĥ = B·ĝ⊙ĝ,      E[ĥ] = diagonal of the Gauss–Newton matrix of the mini-batch's mean loss

Source: Liu et al. 2023 (arXiv 2305.14342), Algorithm 2. Where we differ: the estimate is taken on the
outputs of the training step it falls on (one forward pass, two backward passes) where the paper draws
a mini-batch of its own; and B counts loss terms, which are tokens for a language model, without padding.

Hessian-vector product:

    H·v = ∇⟨∇ℓ, v⟩                            exact, by a second backward pass through the first

Source: Pearlmutter 1994 (Fast exact multiplication by the Hessian), with two reverse passes in place of his
forward one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from protocol.errors import NotFinite
from worker.tasks.likelihood import Likelihood


def gauss_newton_bartlett(
    outputs: Tensor,
    targets: Tensor,
    parameters: Sequence[Tensor],
    likelihood: Likelihood,
    generator: torch.Generator,
    *,
    retain_graph: bool,
) -> list[Tensor]:
    """Estimate the diagonal of the Gauss–Newton matrix of the mean loss.

    Labels are drawn from the model's own predictive distribution; no true label is used, only where
    the true ones are padding.

    Args:
        outputs: of the training step, with their graph; shape as the likelihood takes it.
        targets: the step's own; they say which outputs are loss terms.
        generator: source of the drawn labels, on the outputs' device; the same seed gives the same estimate.
        retain_graph: keep the graph, for the step's own backward pass.

    Returns:
        For each parameter, B·ĝ⊙ĝ: same shape and type; never negative; zeros where the outputs do
        not depend on it.

    Raises:
        InvalidTask: every target is padding.
        NotFinite: the loss on the drawn labels is NaN or infinite.
    """
    with torch.no_grad():
        drawn = likelihood.sample(outputs, targets, generator)
    loss = likelihood.loss(outputs, drawn)
    if not loss.isfinite():
        raise NotFinite("the loss on labels drawn from the model is NaN or infinite")
    gradients = torch.autograd.grad(loss, parameters, retain_graph=retain_graph, materialize_grads=True)
    num_terms = likelihood.num_terms(drawn)
    return [gradient.square().mul_(num_terms) for gradient in gradients]


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
