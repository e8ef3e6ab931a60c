# SPDX-License-Identifier: Apache-2.0
"""How a Hessian estimate is taken: by which estimator, and of how many examples.

The estimators of the diagonal, ĥ, with B the loss terms that the mean loss averages:

    gauss-newton-bartlett    B·ĝ⊙ĝ, ĝ of labels drawn from the model          Liu et al. 2023, Algorithm 2
    hutchinson               u⊙(H·u), u random with E[u·uᵀ] = I               Liu et al. 2023, Algorithm 1
    empirical-fisher         B·g⊙g, g of the true labels                      Kunstner et al. 2019

Sources: Liu et al. 2023 (arXiv 2305.14342); Kunstner et al. 2019 (arXiv 1905.12558), whose warning holds: the
empirical Fisher estimates neither the Gauss-Newton matrix nor the Hessian where the model does not fit its
data, and vanishes with the gradients where it does. It is here to be compared with.

The estimates of Gauss-Newton and Fisher are never negative. Hutchinson's may be, where the loss bends down
and elsewhere by chance, so it has no place in a bundle that the server combines as a curvature.
"""

from typing import Literal, NamedTuple, get_args

GAUSS_NEWTON_BARTLETT: Literal["gauss-newton-bartlett"] = "gauss-newton-bartlett"
EMPIRICAL_FISHER = "empirical-fisher"
HUTCHINSON = "hutchinson"
HessianEstimator = Literal["gauss-newton-bartlett", "empirical-fisher", "hutchinson"]
HESSIAN_ESTIMATORS: tuple[str, ...] = get_args(HessianEstimator)
MAY_BE_NEGATIVE = frozenset({HUTCHINSON})
"""Estimators of which no worker may send an estimate."""


class HessianEstimate(NamedTuple):
    """How a run's workers take their estimates."""

    estimator: str = GAUSS_NEWTON_BARTLETT
    batch: int | None = None
    """So many examples of the step's mini-batch; None: all of them."""
