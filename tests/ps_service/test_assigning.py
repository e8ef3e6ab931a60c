# SPDX-License-Identifier: Apache-2.0
"""What an assignment says of the Hessian estimates that a run asks for."""

import pytest

from protocol.messages import Assignment, RunSpec
from ps_service.assigning import Part, assignment


def asked_in(algorithm: str, asynchronous: bool = False, **hyperparameters: object) -> Assignment:
    spec = RunSpec.model_validate(
        {
            "name": "digits-1",
            "task": "digits",
            "algorithm": algorithm,
            "hyperparameters": hyperparameters,
            "model": [{"name": "fc.weight", "shape": [10, 64]}],
            "params_digest": "ab" * 32,
            "rounds": 20,
            "cohort_size": 4,
            "quorum": 3,
            "asynchronous": {} if asynchronous else None,
        }
    )
    part = Part("a1", "r1", round=1, version=0, slot=0, turn=1, deadline_ms=1, heartbeat_s=20.0)
    return assignment(spec, part, {"params": "ab" * 32})


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_worker_is_told_how_to_estimate_the_hessian_beside_the_settings(asynchronous: bool) -> None:
    chosen = {"hessian_estimator": "empirical-fisher", "hessian_batch": 16}
    told = asked_in("fed-sophia-shared", asynchronous, **chosen)
    assert (told.hessian_estimator, told.hessian_batch) == ("empirical-fisher", 16)
    assert told.settings == asked_in("fed-sophia-shared", asynchronous).settings


def test_of_two_algorithms_in_one_the_workers_half_says_how_they_estimate() -> None:
    told = asked_in("fed-sophia+fedadam", hessian_estimator="hutchinson", hessian_batch=4)
    assert (told.hessian_estimator, told.hessian_batch) == ("hutchinson", 4)


@pytest.mark.parametrize("algorithm", ["fed-sophia", "fedavg", "done"])
def test_nothing_chosen_is_the_default_estimator_of_the_whole_mini_batch(algorithm: str) -> None:
    told = asked_in(algorithm)
    assert (told.hessian_estimator, told.hessian_batch) == ("gauss-newton-bartlett", None)
