# SPDX-License-Identifier: Apache-2.0
"""Which Hessian estimates a run may be made of."""

from protocol.algorithms import MIN_REFRESH_BATCH, Algorithm
from protocol.estimates import HESSIAN_ESTIMATORS, MAY_BE_NEGATIVE, HessianEstimate


def check_estimates(algorithm: Algorithm, estimate: HessianEstimate, batch_size: int) -> None:
    """An estimate is of examples that there are; one that is sent is never negative, and of enough of them.

    Raises:
        ValueError: naming what it is not.
    """
    batch, name = estimate.batch, "batch_size" if estimate.batch is None else "hessian_batch"
    if batch is not None and batch > batch_size:
        raise ValueError(f"hessian_batch {batch}: a mini-batch has {batch_size} examples")
    if "hessian" not in algorithm.combiners:
        return
    if estimate.estimator in MAY_BE_NEGATIVE:
        allowed = (each for each in HESSIAN_ESTIMATORS if each not in MAY_BE_NEGATIVE)
        raise ValueError(
            f"hessian_estimator: {estimate.estimator} may be negative, and workers of {algorithm.name} send "
            f"what they estimate, which must not be; expected one of {', '.join(allowed)}"
        )
    examples = batch_size if batch is None else batch
    if examples < MIN_REFRESH_BATCH:
        raise ValueError(
            f"{name} {examples}: {algorithm.name} estimates the Hessian over at least {MIN_REFRESH_BATCH} "
            "examples"
        )
