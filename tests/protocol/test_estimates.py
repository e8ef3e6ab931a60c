# SPDX-License-Identifier: Apache-2.0
"""How a run's workers estimate the Hessian: what may be chosen, and how they learn of it."""

import pytest

from protocol.algorithms import ALGORITHMS, JOINED, MIN_REFRESH_BATCH, algorithm_named
from protocol.errors import InvalidMessage
from protocol.estimates import GAUSS_NEWTON_BARTLETT, HESSIAN_ESTIMATORS, MAY_BE_NEGATIVE, HessianEstimate
from protocol.messages import Assignment, RunSpec, parse

SENDING = ["fed-sophia-shared", "curvature-weighted"]
KEEPING = ["fed-sophia", "fed-sophia+fedadam"]
estimating = pytest.mark.parametrize("algorithm", SENDING + KEEPING)
sending = pytest.mark.parametrize("algorithm", SENDING)
keeping = pytest.mark.parametrize("algorithm", KEEPING)


def a_spec(algorithm: str, batch_size: int = 32, **hyperparameters: object) -> RunSpec:
    fields = {
        "name": "digits-1",
        "task": "digits",
        "algorithm": algorithm,
        "hyperparameters": hyperparameters,
        "model": [{"name": "fc.weight", "shape": [10, 64]}],
        "params_digest": "ab" * 32,
        "rounds": 20,
        "batch_size": batch_size,
        "cohort_size": 4,
        "quorum": 3,
    }
    return parse(RunSpec, fields)


def estimate_of(spec: RunSpec) -> HessianEstimate:
    return algorithm_named(spec.algorithm).parse(spec.hyperparameters).hessian_estimate()


@estimating
@pytest.mark.parametrize("estimator", sorted(set(HESSIAN_ESTIMATORS) - MAY_BE_NEGATIVE))
def test_an_estimator_that_is_never_negative_may_be_chosen_wherever_one_is_used(
    algorithm: str, estimator: str
) -> None:
    spec = a_spec(algorithm, hessian_estimator=estimator, hessian_batch=8)
    assert estimate_of(spec) == (estimator, 8)
    assert RunSpec.stored(spec.model_dump_json()) == spec


@estimating
def test_what_nobody_chooses_is_gauss_newton_bartlett_of_the_whole_mini_batch(algorithm: str) -> None:
    assert estimate_of(a_spec(algorithm)) == (GAUSS_NEWTON_BARTLETT, None)


@keeping
def test_hutchinson_may_be_chosen_where_the_estimate_stays_on_the_worker(algorithm: str) -> None:
    assert estimate_of(a_spec(algorithm, hessian_estimator="hutchinson")) == ("hutchinson", None)


@sending
def test_hutchinson_is_refused_where_the_estimate_is_sent_and_what_may_be_chosen_is_named(
    algorithm: str,
) -> None:
    expected = rf"hutchinson may be negative.*{algorithm} send.*gauss-newton-bartlett, empirical-fisher"
    with pytest.raises(InvalidMessage, match=expected):
        a_spec(algorithm, hessian_estimator="hutchinson")


@estimating
@pytest.mark.parametrize("name", ["adahessian", "Hutchinson", "", 3, None, True])
def test_an_unknown_estimator_is_refused(algorithm: str, name: object) -> None:
    with pytest.raises(InvalidMessage, match="hessian_estimator"):
        a_spec(algorithm, hessian_estimator=name)


def test_an_estimator_of_an_algorithm_that_takes_no_estimates_is_refused() -> None:
    for name in (*ALGORITHMS, *JOINED):
        if name.partition("+")[0] not in SENDING + KEEPING:
            with pytest.raises(InvalidMessage, match="hessian_estimator"):
                a_spec(name, hessian_estimator=GAUSS_NEWTON_BARTLETT)


@estimating
def test_an_estimate_of_more_examples_than_a_mini_batch_has_is_refused(algorithm: str) -> None:
    assert estimate_of(a_spec(algorithm, hessian_batch=32)).batch == 32
    with pytest.raises(InvalidMessage, match="hessian_batch 33: a mini-batch has 32 examples"):
        a_spec(algorithm, hessian_batch=33)


@sending
def test_an_estimate_that_is_sent_is_of_enough_examples(algorithm: str) -> None:
    assert estimate_of(a_spec(algorithm, hessian_batch=MIN_REFRESH_BATCH)).batch == MIN_REFRESH_BATCH
    with pytest.raises(InvalidMessage, match=r"hessian_batch 7: .* at least 8 examples"):
        a_spec(algorithm, hessian_batch=MIN_REFRESH_BATCH - 1)
    with pytest.raises(InvalidMessage, match=r"batch_size 7: .* at least 8 examples"):
        a_spec(algorithm, batch_size=MIN_REFRESH_BATCH - 1)


@keeping
def test_an_estimate_that_stays_on_the_worker_may_be_of_one_example(algorithm: str) -> None:
    assert estimate_of(a_spec(algorithm, hessian_batch=1)).batch == 1


@estimating
def test_an_estimate_of_no_example_is_refused(algorithm: str) -> None:
    with pytest.raises(InvalidMessage, match="hessian_batch"):
        a_spec(algorithm, hessian_batch=0)


def test_a_number_does_not_become_a_word() -> None:
    with pytest.raises(InvalidMessage, match="clip_bound"):
        a_spec("fed-sophia", clip_bound="high")


def test_an_assignment_of_a_server_that_names_no_estimator_means_what_it_always_did() -> None:
    before = {
        "assignment_id": "a1", "run_id": "r1", "round": 3, "version": 2, "slot": 0, "phase": "train",
        "task": "digits", "tensors": {}, "bundles": ["delta"], "encodings": {}, "optimizer": "sophia",
        "settings": {}, "local_steps": 10, "batch_size": 32, "seed": 7, "deadline_ms": 1,
    }  # fmt: skip
    assignment = parse(Assignment, before)
    assert (assignment.hessian_estimator, assignment.hessian_batch) == HessianEstimate()
