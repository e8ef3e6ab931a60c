# SPDX-License-Identifier: Apache-2.0
"""A trial's data: who holds what, what is held out, and how versions are measured."""

import numpy as np
import pytest
import torch

from protocol.errors import InvalidTask, InvalidUsage
from tests.worker.small_rounds import CPU, an_assignment, digits
from worker.model import Arrays
from worker.training import Trainer, initial_parameters
from worker.trial_data import TrialData, TrialEvaluator


def divided(seed: int = 0, validation: int = 237) -> TrialData:
    return TrialData.divided("digits", None, "shards:2", 4, seed, validation=validation, validation_seed=1234)


def as_rows(inputs: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in inputs}


def test_what_is_held_out_goes_to_no_worker_and_everything_else_to_exactly_one() -> None:
    data = divided()
    everything = digits().training_data()
    assert len(data.validation) == 237
    held = np.concatenate(data.rows_of_each)
    assert sorted(held) == list(range(len(data.training))) == list(range(len(everything) - 237))
    apart = as_rows(everything.inputs) - as_rows(data.training.inputs)
    assert apart <= as_rows(data.validation.inputs)
    torch.testing.assert_close(data.test.inputs, digits().evaluation_data().inputs)


def test_the_seed_of_a_trial_divides_anew_and_holds_the_same_out() -> None:
    first, second = divided(seed=0), divided(seed=1)
    torch.testing.assert_close(first.validation.inputs, second.validation.inputs)
    assert any(not np.array_equal(a, b) for a, b in zip(first.rows_of_each, second.rows_of_each, strict=True))
    assert first.digest == second.digest
    assert first.digest != divided(validation=200).digest


def test_labels_are_flipped_for_those_workers_alone() -> None:
    """Of ten classes y becomes 9 − y; whoever trains on that trains on other data."""
    data = divided()
    flipped = data.with_flipped_labels([1, 3])
    for worker, rows in enumerate(data.rows_of_each):
        honest = data.training.targets[rows]
        expected = 9 - honest if worker in (1, 3) else honest
        torch.testing.assert_close(flipped.training.targets[rows], expected)
    torch.testing.assert_close(flipped.test.targets, data.test.targets)
    assert flipped.digest != data.digest == divided().digest


def test_holding_everything_out_is_refused() -> None:
    with pytest.raises(InvalidUsage, match="hold out"):
        divided(validation=1437)


def params_of(*values: float) -> list[Arrays]:
    shapes = initial_parameters(digits(), 0)
    return [{name: np.full_like(array, value) + array for name, array in shapes.items()} for value in values]


def test_a_version_is_measured_as_a_worker_of_a_federation_measures_it() -> None:
    data = divided()
    evaluator = TrialEvaluator(data, CPU, iterate_average=False)
    for params in params_of(0.0, 0.1):
        num_examples, metrics = evaluator.evaluate({"params": params})
        expected = Trainer(data.task, None, CPU).evaluate({"params": params})
        assert num_examples == expected.num_examples
        for name, value in expected.metrics.items():
            assert metrics[name] == pytest.approx(value)
        assert set(metrics) == {
            f"{part}_{name}" for part in ("validation", "test") for name in ("loss", "accuracy")
        }


def test_the_iterate_average_by_hand() -> None:
    """Weights 9/9, 9/10, 9/11: of 1, 2, 4 that is 1, then 1 + 0.9·1 = 1.9, then 1.9 + 9/11·2.1 = 3.61818…"""
    data = divided()
    averaging = TrialEvaluator(data, CPU, iterate_average=True)
    plain = TrialEvaluator(data, CPU, iterate_average=False)
    for params, mean in zip(params_of(1, 2, 4), params_of(1, 1.9, 1.9 + 9 / 11 * 2.1), strict=True):
        found = averaging.evaluate({"params": params})[1]
        expected = plain.evaluate({"params": mean})[1]
        assert found["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-5)


def test_an_evaluator_does_not_train() -> None:
    with pytest.raises(InvalidTask, match="no training examples"):
        TrialEvaluator(divided(), CPU, iterate_average=False).train(an_assignment(), {}, None)
