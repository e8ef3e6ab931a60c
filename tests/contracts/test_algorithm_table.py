# SPDX-License-Identifier: Apache-2.0
"""What every row of the algorithm table promises, and that the rooms it points into keep it."""

import importlib
import math
import re

import pytest

from protocol.algorithms import ALGORITHMS, JOINED, Algorithm, algorithm_named
from protocol.bound import DeltaBound
from protocol.errors import InvalidMessage, UnknownAlgorithm
from protocol.fed_sophia import momentum_decay_for

every_row = pytest.mark.parametrize(
    "row", [pytest.param(algorithm_named(name), id=name) for name in (*ALGORITHMS, *JOINED)]
)
clipped_rows = pytest.mark.parametrize("name", ["fed-sophia", "fed-sophia-shared"])
KEBAB = r"[a-z0-9]+(-[a-z0-9]+)*"
SNAKE = r"[a-z]+(_[a-z]+)*"


@every_row
def test_algorithms_are_written_with_hyphens_and_what_they_are_made_of_like_its_files(row: Algorithm) -> None:
    assert algorithm_named(row.name) is row
    assert all(re.fullmatch(KEBAB, name) for name in row.name.split("+"))
    parts = (row.optimizer, row.server_step, *row.combiners.values())
    for name in (*parts, *row.combiners, *row.global_state, *row.derived):
        assert re.fullmatch(SNAKE, name)
    assert row.summary


@every_row
def test_the_defaults_are_hyperparameters_that_work(row: Algorithm) -> None:
    hyperparameters = row.parse({})
    for local_steps in (1, 10, 54, 1_000_000):
        settings = hyperparameters.optimizer_settings(local_steps)
        assert settings
        for name, value in settings.items():
            assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name)
            assert type(value) is float
            assert math.isfinite(value)


@every_row
def test_every_bundle_a_worker_may_send_has_a_combiner_and_the_delta_is_one(row: Algorithm) -> None:
    hyperparameters = row.parse({})
    wanted = [hyperparameters.bundles_wanted(version) for version in range(100)]
    assert {bundle for bundles in wanted for bundle in bundles} == set(row.combiners)
    assert all(len(set(bundles)) == len(bundles) > 0 for bundles in wanted)
    assert set(hyperparameters.periods()) == set(row.combiners)


@every_row
def test_a_delta_is_wanted_of_every_version_or_of_one_phase_of_several(row: Algorithm) -> None:
    hyperparameters = row.parse({})
    with_a_delta = {
        row.phase_of(count) for count in range(100) if "delta" in hyperparameters.bundles_wanted(count)
    }
    assert len(with_a_delta) == 1
    for count in range(100):
        wants_a_delta = "delta" in hyperparameters.bundles_wanted(count)
        assert wants_a_delta == (row.phase_of(count) in with_a_delta)


@every_row
def test_phases_take_turns_and_are_none_where_workers_do_not_wait_for_each_other(row: Algorithm) -> None:
    assert len(set(row.phases)) == len(row.phases) > 0
    assert [row.phase_of(count) for count in range(len(row.phases))] == list(row.phases)
    assert row.phase_of(len(row.phases)) == row.phases[0]
    assert len(row.phases) == 1 or row.synchronous_because


@every_row
def test_state_is_kept_beside_params_and_what_is_derived_comes_from_what_is_sent(row: Algorithm) -> None:
    assert "params" not in (*row.state_bundles, *row.server_bundles, *row.combiners)
    assert len(set(row.global_state)) == len(row.global_state)
    assert set(row.derived.values()) <= set(row.combiners)
    assert not set(row.derived) & set(row.combiners)


@every_row
def test_a_bound_grows_with_the_steps_done_or_there_is_none(row: Algorithm) -> None:
    bounds = [row.parse({}).bound(steps, 10) for steps in range(1, 11)]
    if bounds[0] is None:
        assert set(bounds) == {None}
        return
    radii = [bound.radius for bound in bounds if bound is not None]
    assert len(radii) == 10
    assert radii[0] > 0
    assert radii == sorted(radii)


@every_row
def test_an_unknown_hyperparameter_is_refused_by_name(row: Algorithm) -> None:
    with pytest.raises(InvalidMessage, match=re.escape(f"warmup of {row.name}")):
        row.parse({"warmup": 3})


@every_row
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, "much", None, [0.1]])
def test_no_hyperparameter_takes_nonsense(row: Algorithm, value: object) -> None:
    for name in row.hyperparameters.model_fields:
        if value is None and row.hyperparameters.model_fields[name].default is None:
            continue  # which leaves the choice to the algorithm
        with pytest.raises(InvalidMessage, match=name):
            row.parse({name: value})


@every_row
def test_the_optimizer_is_on_the_workers_menu(row: Algorithm) -> None:
    optimizers = importlib.import_module("worker.optimizers")
    assert row.optimizer in optimizers.OPTIMIZERS


@every_row
def test_the_combiners_and_the_server_step_are_on_the_servers_menus(row: Algorithm) -> None:
    combiners = importlib.import_module("ps_service.combiners")
    server_steps = importlib.import_module("ps_service.server_steps")
    assert set(row.combiners.values()) <= set(combiners.COMBINERS)
    assert row.server_step in server_steps.SERVER_STEPS


def test_an_unknown_algorithm_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(UnknownAlgorithm, match=r"'adam'.*fed-sophia-shared, fed-sophia, fedavg"):
        algorithm_named("adam")


@clipped_rows
@pytest.mark.parametrize("local_steps", [1, 10, 54, 1000])
def test_a_round_moves_a_coordinate_by_max_round_step_whatever_the_number_of_steps(
    name: str, local_steps: int
) -> None:
    bound = (
        ALGORITHMS[name].parse({"max_round_step": 0.02, "weight_decay": 0}).bound(local_steps, local_steps)
    )
    assert isinstance(bound, DeltaBound)
    assert bound.radius == pytest.approx(0.02, rel=1e-12)


@clipped_rows
def test_weight_decay_that_would_erase_the_parameters_is_refused(name: str) -> None:
    hyperparameters = ALGORITHMS[name].parse({"max_round_step": 1.0, "clip_bound": 0.1, "weight_decay": 0.1})
    assert hyperparameters.optimizer_settings(2)["learning_rate"] == 5.0
    with pytest.raises(InvalidMessage, match="must stay below 1"):
        hyperparameters.optimizer_settings(1)


def test_the_shared_form_asks_for_the_hessian_every_few_versions() -> None:
    hyperparameters = ALGORITHMS["fed-sophia-shared"].parse({"refresh_rounds": 3})
    asked = ["hessian" in hyperparameters.bundles_wanted(version) for version in range(7)]
    assert asked == [True, False, False, True, False, False, True]


@pytest.mark.parametrize("local_steps", [1, 2, 10, 54, 1000, 1_000_000])
@pytest.mark.parametrize("weight", [1e-6, 0.5, 0.92, 0.999])
def test_momentum_keeps_its_mean_weight_over_a_round(weight: float, local_steps: int) -> None:
    decay = momentum_decay_for(weight, local_steps)
    assert 0 < decay < 1
    if local_steps <= 1000:
        mean_weight = sum(decay**step for step in range(1, local_steps + 1)) / local_steps
        assert mean_weight == pytest.approx(weight, rel=1e-9)


def test_the_momentum_of_the_default_run_is_what_was_measured() -> None:
    assert momentum_decay_for(0.92, 1) == pytest.approx(0.92)
    assert momentum_decay_for(0.92, 10) == pytest.approx(0.985, abs=5e-4)
    assert momentum_decay_for(0.92, 54) == pytest.approx(0.997, abs=5e-4)


@pytest.mark.parametrize("weight", [5e-324, 1 - 2**-53])
def test_momentum_is_defined_at_the_edges(weight: float) -> None:
    assert 0 <= momentum_decay_for(weight, 10) < 1


def test_an_asynchronous_run_has_less_momentum_unless_it_is_said_how_much():
    row = ALGORITHMS["fed-sophia-shared"]
    decays = [
        hyperparameters.optimizer_settings(10)["momentum_decay"]
        for hyperparameters in (row.parse({}), row.parse({}).in_asynchronous_run())
    ]
    assert decays == [momentum_decay_for(0.92, 10), momentum_decay_for(0.8, 10)]
    said = row.parse({"momentum_weight": 0.5})
    assert said.in_asynchronous_run() == said
