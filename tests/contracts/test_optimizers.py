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
OPTIMIZER_OF_ALGORITHM = [
    (row.name, row.optimizer, count) for row in ALGORITHMS.values() for count in range(len(row.phases))
]
AT_THE_END_OF_ROUNDS = {"scaffold"}
"""What these keep changes when a round ends, so a round that goes on is not two that follow each other."""
STAND_STILL = {"done"}
"""These leave the parameters where they are: what they find is in what they upload."""
every_optimizer = pytest.mark.parametrize(("algorithm", "name", "count"), OPTIMIZER_OF_ALGORITHM)


def random_tensors(seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator) for shape in SHAPES)


def shaped(tensors: Tensors, like: Tensors) -> Tensors:
    """The same tensor for every worker, where there are several in a leading dimension."""
    return tuple(t.broadcast_to(each.shape).clone() for t, each in zip(tensors, like, strict=True))


def settings_of(algorithm: str) -> dict[str, float]:
    return ALGORITHMS[algorithm].parse({}).optimizer_settings(10)


def begin(
    algorithm: str, name: str, count: int, parameters: Tensors, kept: KeptTensors | None = None
) -> Optimizer:
    wanted = ALGORITHMS[algorithm].parse({}).bundles_wanted(count)
    squares = tuple(tensor.square() for tensor in random_tensors(77))
    shared = {bundle: shaped(squares, parameters) for bundle in ALGORITHMS[algorithm].state_bundles}
    return OPTIMIZERS[name](settings_of(algorithm), RoundStart(parameters, shared, kept, wanted))


def steps(optimizer: Optimizer, parameters: Tensors, seeds: range) -> Optimizer:
    for seed in seeds:
        gradients = shaped(random_tensors(seed), parameters)
        optimizer = optimizer.step(parameters, gradients, curvature_for(optimizer, parameters, 1000 + seed))
    return optimizer


def curvature_for(optimizer: Optimizer, parameters: Tensors, seed: int) -> Tensors | None:
    """What the next step wants: an estimate, or the product of a positive diagonal with its vector."""
    diagonal = shaped(tuple(tensor.square() for tensor in random_tensors(seed)), parameters)
    if optimizer.wants_hessian:
        return diagonal
    vector = optimizer.vector
    return None if vector is None else tuple(h * v for h, v in zip(diagonal, vector, strict=True))


def result_of(optimizer: Optimizer, parameters: Tensors) -> dict[str, Tensors]:
    """Where the parameters are, and what is uploaded."""
    return {"params": parameters} | dict(optimizer.uploads())


def same_bits(first: Tensors, second: Tensors) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def same_bundles(first: Mapping[str, Tensors], second: Mapping[str, Tensors]) -> bool:
    return first.keys() == second.keys() and all(same_bits(first[name], second[name]) for name in first)


def test_every_optimizer_of_the_menu_belongs_to_an_algorithm_and_the_other_way_round() -> None:
    assert {optimizer for _, optimizer, _ in OPTIMIZER_OF_ALGORITHM} == set(OPTIMIZERS)


@every_optimizer
def test_a_step_moves_the_parameters_and_changes_neither_gradients_nor_curvature(
    algorithm: str, name: str, count: int
) -> None:
    parameters, gradients = random_tensors(1), random_tensors(2)
    optimizer = begin(algorithm, name, count, parameters)
    curvature = curvature_for(optimizer, parameters, 3) or random_tensors(3)
    given = tuple(tensor.clone() for tensor in curvature)
    after = optimizer.step(parameters, gradients, curvature)
    if name in STAND_STILL:
        assert same_bits(parameters, random_tensors(1))
        assert not same_bundles(after.uploads(), optimizer.uploads())
    else:
        assert not same_bits(parameters, random_tensors(1))
    assert same_bits(gradients, random_tensors(2))
    assert same_bits(curvature, given)


@every_optimizer
def test_it_keeps_no_gradients_which_the_next_steps_may_be_written_over(
    algorithm: str, name: str, count: int
) -> None:
    ends = []
    for overwritten in (False, True):
        parameters = random_tensors(0)
        optimizer = begin(algorithm, name, count, parameters)
        for seed in range(1, 4):
            gradients = random_tensors(seed)
            curvature = curvature_for(optimizer, parameters, 1000 + seed)
            optimizer = optimizer.step(parameters, gradients, curvature)
            if overwritten:
                torch._foreach_zero_(gradients)
        ends.append((parameters, optimizer.uploads()))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)


@every_optimizer
def test_an_optimizer_wants_an_estimate_or_a_product_and_not_both(
    algorithm: str, name: str, count: int
) -> None:
    parameters = random_tensors(1)
    optimizer = begin(algorithm, name, count, parameters)
    for seed in range(12):
        assert not optimizer.wants_hessian or optimizer.vector is None
        optimizer = steps(optimizer, parameters, range(seed, seed + 1))


@every_optimizer
def test_workers_that_step_together_in_a_leading_dimension_go_where_each_goes_alone(
    algorithm: str, name: str, count: int
) -> None:
    pairs = zip(random_tensors(1), random_tensors(2), strict=True)
    together = tuple(torch.stack(pair) for pair in pairs)
    results = result_of(steps(begin(algorithm, name, count, together), together, range(5)), together)
    for worker in range(2):
        alone = random_tensors(1 + worker)
        expected = result_of(steps(begin(algorithm, name, count, alone), alone, range(5)), alone)
        for bundle, tensors in results.items():
            torch.testing.assert_close(tuple(tensor[worker] for tensor in tensors), expected[bundle])


@every_optimizer
def test_the_same_steps_give_the_same_bits(algorithm: str, name: str, count: int) -> None:
    results = []
    for _ in range(2):
        parameters = random_tensors(1)
        optimizer = steps(begin(algorithm, name, count, parameters), parameters, range(12))
        results.append((parameters, optimizer.uploads()))
    assert same_bits(results[0][0], results[1][0])
    assert same_bundles(results[0][1], results[1][1])


@every_optimizer
def test_a_value_stays_what_it_was_when_steps_are_taken_from_it(
    algorithm: str, name: str, count: int
) -> None:
    """So it can be saved, compared, and stepped from twice."""
    middle = random_tensors(1)
    optimizer = steps(begin(algorithm, name, count, middle), middle, range(5))
    ends = []
    for _ in range(2):
        parameters = tuple(tensor.clone() for tensor in middle)
        ends.append(result_of(steps(optimizer, parameters, range(5, 9)), parameters))
    assert same_bundles(ends[0], ends[1])


@every_optimizer
def test_what_is_kept_continues_the_next_round_bit_for_bit(algorithm: str, name: str, count: int) -> None:
    parameters = random_tensors(1)
    optimizer = steps(begin(algorithm, name, count, parameters), parameters, range(7))
    kept = optimizer.kept()
    if kept is None:
        return
    assert kept.step == 7
    if name in AT_THE_END_OF_ROUNDS:
        return
    again = tuple(tensor.clone() for tensor in parameters)
    went_on = steps(optimizer, parameters, range(7, 12))
    resumed = steps(begin(algorithm, name, count, again, kept), again, range(7, 12))
    assert same_bits(parameters, again)
    assert same_bundles((went_on.kept() or kept).bundles, (resumed.kept() or kept).bundles)


@every_optimizer
def test_it_uploads_what_its_algorithm_wants_and_the_delta_if_it_likes(
    algorithm: str, name: str, count: int
) -> None:
    parameters = random_tensors(1)
    optimizer = steps(begin(algorithm, name, count, parameters), parameters, range(3))
    wanted = ALGORITHMS[algorithm].parse({}).bundles_wanted(count)
    assert set(optimizer.uploads()) | {"delta"} == {*wanted, "delta"}
    if name in STAND_STILL:  # no move of the parameters could stand for what it found
        assert set(wanted) <= set(optimizer.uploads())
    for tensors in optimizer.uploads().values():
        assert [tensor.shape for tensor in tensors] == [tensor.shape for tensor in parameters]


@every_optimizer
def test_metrics_are_finite_numbers(algorithm: str, name: str, count: int) -> None:
    parameters = random_tensors(1)
    metrics = steps(begin(algorithm, name, count, parameters), parameters, range(3)).metrics()
    assert all(isinstance(value, float) and value == value for value in metrics.values())


@every_optimizer
def test_a_setting_that_is_missing_is_named(algorithm: str, name: str, count: int) -> None:
    wanted = ALGORITHMS[algorithm].parse({}).bundles_wanted(count)
    for missing in settings_of(algorithm):
        incomplete = {key: value for key, value in settings_of(algorithm).items() if key != missing}
        with pytest.raises(InvalidMessage, match=f"{missing} is missing"):
            OPTIMIZERS[name](incomplete, RoundStart(random_tensors(1), {}, None, wanted))
