# SPDX-License-Identifier: Apache-2.0
"""What a worker is told about its part of a round. PURE."""

from collections.abc import Mapping
from dataclasses import dataclass

from protocol.algorithms import SENT_PARAMS, algorithm_named
from protocol.messages import Assignment, RunSpec
from ps_service.sampling import assignment_seed


@dataclass(frozen=True)
class Part:
    """Which part of which round; what is to be done in it follows from the run's spec."""

    assignment_id: str
    run_id: str
    round: int
    version: int
    """Which it starts from."""
    slot: int
    turn: int
    """The round; in an asynchronous run the worker's own count."""
    deadline_ms: int
    heartbeat_s: float


def bundles_wanted(spec: RunSpec, version: int, turn: int) -> tuple[str, ...]:
    """What an update must carry: told by its version, or by the worker's turn where versions do not wait."""
    hyperparameters = algorithm_named(spec.algorithm).parse(spec.hyperparameters)
    return hyperparameters.bundles_wanted(_count(spec, version, turn))


def _count(spec: RunSpec, version: int, turn: int) -> int:
    return version if spec.asynchronous is None else turn - 1


def assignment(spec: RunSpec, part: Part, tensors: Mapping[str, str]) -> Assignment:
    """Everything a worker is told.

    Args: tensors: {bundle: digest} of the version it starts from.
    """
    algorithm = algorithm_named(spec.algorithm)
    hyperparameters = algorithm.parse(spec.hyperparameters)
    count = _count(spec, part.version, part.turn)
    bundles = hyperparameters.bundles_wanted(count)
    if spec.asynchronous is not None:
        hyperparameters = hyperparameters.in_asynchronous_run()
    estimate = hyperparameters.hessian_estimate()
    return Assignment(
        assignment_id=part.assignment_id,
        run_id=part.run_id,
        round=part.round,
        version=part.version,
        slot=part.slot,
        phase=algorithm.phase_of(count),
        task=spec.task,
        tensors=given_to_train(spec, tensors),
        bundles=bundles,
        encodings={bundle: spec.encoding_of(bundle) for bundle in bundles},
        optimizer=algorithm.optimizer,
        settings=hyperparameters.optimizer_settings(spec.local_steps),
        local_steps=spec.local_steps,
        batch_size=spec.batch_size,
        hessian_estimator=estimate.estimator,
        hessian_batch=estimate.batch,
        seed=assignment_seed(
            spec.seed, part.turn, part.slot, None if spec.asynchronous is None else part.version
        ),
        deadline_ms=part.deadline_ms,
        heartbeat_s=part.heartbeat_s,
    )


def started_from(tensors: Mapping[str, str]) -> str:
    """Digest of the parameters that a worker trains from; of the version's own where it has no others."""
    return tensors.get(SENT_PARAMS) or tensors["params"]


def given_to_train(spec: RunSpec, tensors: Mapping[str, str]) -> dict[str, str]:
    """What a worker is given of a version to train from."""
    given = sent_down(spec, tensors)
    return given | {"params": started_from(tensors)} if given else given


def sent_down(spec: RunSpec, tensors: Mapping[str, str]) -> dict[str, str]:
    """Of a version's bundles those that a worker is given: what only the server step needs stays here."""
    sent = algorithm_named(spec.algorithm).sent_down
    return {bundle: digest for bundle, digest in tensors.items() if bundle in sent}
