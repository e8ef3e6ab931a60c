# SPDX-License-Identifier: Apache-2.0
"""The contract every optimizer of the menu keeps."""

from collections.abc import Mapping

import pytest
import torch

from protocol.algorithms import ALGORITHMS
from protocol.errors import InvalidMessage
from worker.optimizers import OPTIMIZERS
from worker.optimizers.base import KeptTensors, Optimizer, RoundStart, Tensors

SHAPES = ((4, 3), (3,), ())
OPTIMIZER_OF_ALGORITHM = [(row.name, row.optimizer) for row in ALGORITHMS.values()]
AT_THE_END_OF_ROUNDS = {"scaffold"}
"""What these keep changes when a round ends, so a round that goes on is not two that follow each other."""
every_optimizer = pytest.mark.parametrize(("algorithm", "name"), OPTIMIZER_OF_ALGORITHM)


def random_tensors(seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator) for shape in SHAPES)


def settings_of(algorithm: str) -> dict[str, float]:
    return ALGORITHMS[algorithm].parse({}).optimizer_settings(10)


def begin(algorithm: str, name: str, parameters: Tensors, kept: KeptTensors | None = None) -> Optimizer:
    wanted = ALGORITHMS[algorithm].parse({}).bundles_wanted(0)
    return OPTIMIZERS[name](settings_of(algorithm), RoundStart(parameters, {}, kept, wanted))


def steps(optimizer: Optimizer, parameters: Tensors, seeds: range) -> Optimizer:
    for seed in seeds:
        estimate = None
        if optimizer.wants_hessian:
            estimate = tuple(tensor.square() for tensor in random_tensors(1000 + seed))
        optimizer = optimizer.step(parameters, random_tensors(seed), estimate)
    return optimizer


def same_bits(first: Tensors, second: Tensors) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def same_bundles(first: Mapping[str, Tensors], second: Mapping[str, Tensors]) -> bool:
    return first.keys() == second.keys() and all(same_bits(first[name], second[name]) for name in first)


def test_every_optimizer_of_the_menu_belongs_to_an_algorithm_and_the_other_way_round() -> None:
    assert {optimizer for _, optimizer in OPTIMIZER_OF_ALGORITHM} == set(OPTIMIZERS)


@every_optimizer
def test_a_step_moves_the_parameters_and_changes_neither_gradients_nor_estimate(
    algorithm: str, name: str
) -> None:
    parameters, gradients, estimate = random_tensors(1), random_tensors(2), random_tensors(3)
    begin(algorithm, name, parameters).step(parameters, gradients, estimate)
    assert not same_bits(parameters, random_tensors(1))
    assert same_bits(gradients, random_tensors(2))
    assert same_bits(estimate, random_tensors(3))


@every_optimizer
def test_the_same_steps_give_the_same_bits(algorithm: str, name: str) -> None:
    results = []
    for _ in range(2):
        parameters = random_tensors(1)
        optimizer = steps(begin(algorithm, name, parameters), parameters, range(12))
        results.append((parameters, optimizer.uploads()))
    assert same_bits(results[0][0], results[1][0])
    assert same_bundles(results[0][1], results[1][1])


@every_optimizer
def test_a_value_stays_what_it_was_when_steps_are_taken_from_it(algorithm: str, name: str) -> None:
    """So it can be saved, compared, and stepped from twice."""
    middle = random_tensors(1)
    optimizer = steps(begin(algorithm, name, middle), middle, range(5))
    ends = []
    for _ in range(2):
        parameters = tuple(tensor.clone() for tensor in middle)
        steps(optimizer, parameters, range(5, 9))
        ends.append(parameters)
    assert same_bits(ends[0], ends[1])


@every_optimizer
def test_what_is_kept_continues_the_next_round_bit_for_bit(algorithm: str, name: str) -> None:
    parameters = random_tensors(1)
    optimizer = steps(begin(algorithm, name, parameters), parameters, range(7))
    kept = optimizer.kept()
    if kept is None:
        return
    assert kept.step == 7
    if name in AT_THE_END_OF_ROUNDS:
        return
    again = tuple(tensor.clone() for tensor in parameters)
    went_on = steps(optimizer, parameters, range(7, 12))
    resumed = steps(begin(algorithm, name, again, kept), again, range(7, 12))
    assert same_bits(parameters, again)
    assert same_bundles((went_on.kept() or kept).bundles, (resumed.kept() or kept).bundles)


@every_optimizer
def test_it_uploads_what_its_algorithm_wants_beside_the_delta(algorithm: str, name: str) -> None:
    parameters = random_tensors(1)
    optimizer = steps(begin(algorithm, name, parameters), parameters, range(3))
    wanted = set(ALGORITHMS[algorithm].parse({}).bundles_wanted(0)) - {"delta"}
    assert set(optimizer.uploads()) == wanted
    for tensors in optimizer.uploads().values():
        assert [tensor.shape for tensor in tensors] == [tensor.shape for tensor in parameters]


@every_optimizer
def test_metrics_are_finite_numbers(algorithm: str, name: str) -> None:
    parameters = random_tensors(1)
    metrics = steps(begin(algorithm, name, parameters), parameters, range(3)).metrics()
    assert all(isinstance(value, float) and value == value for value in metrics.values())


@every_optimizer
def test_a_setting_that_is_missing_is_named(algorithm: str, name: str) -> None:
    for missing in settings_of(algorithm):
        incomplete = {key: value for key, value in settings_of(algorithm).items() if key != missing}
        with pytest.raises(InvalidMessage, match=f"{missing} is missing"):
            OPTIMIZERS[name](incomplete, RoundStart(random_tensors(1), {}, None, ("delta",)))
