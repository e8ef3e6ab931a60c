# SPDX-License-Identifier: Apache-2.0
"""An assignment for benchmarks that train without a server."""

from protocol.algorithms import algorithm_named
from protocol.messages import Assignment


def an_assignment(algorithm: str, steps: int, batch: int, *, slot: int = 0, **changed: int) -> Assignment:
    """Give one worker's part of a round that wants no more than the delta.

    Args: changed: of the algorithm's hyper-parameters.
    """
    row = algorithm_named(algorithm)
    hyperparameters = row.parse(changed)
    return Assignment(
        assignment_id=f"a{slot}",
        run_id="benchmark",
        round=2,
        version=1,
        slot=slot,
        phase="train",
        task="benchmark",
        tensors={},
        bundles=hyperparameters.bundles_wanted(1),
        encodings={},
        optimizer=row.optimizer,
        settings=hyperparameters.optimizer_settings(steps),
        local_steps=steps,
        batch_size=batch,
        hessian_batch=changed.get("hessian_batch"),
        seed=slot,
        deadline_ms=0,
    )
