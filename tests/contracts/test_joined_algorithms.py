# SPDX-License-Identifier: Apache-2.0
"""Algorithms made of two: the workers' half of one, the server's half of another."""

import numpy as np
import pytest

from protocol.algorithms import ALGORITHMS, JOINED, LOCALS, SERVERS, algorithm_named
from protocol.baselines import FedAdamHyperparameters, FedYogiHyperparameters
from protocol.errors import InvalidMessage, UnknownAlgorithm
from protocol.messages import RunSpec, TensorSpec
from ps_service.round_step import RoundStep
from tests.contracts.small_steps import one, sent

every_pair = pytest.mark.parametrize(
    ("local", "server"), [(local, server) for local in LOCALS for server in SERVERS]
)


def test_what_can_be_joined() -> None:
    assert LOCALS == ("fed-sophia", "fedavg", "fedprox", "local-adamw")
    assert SERVERS == ("fedavgm", "fedadam", "fedyogi", "fedadagrad")
    assert len(set(JOINED)) == len(JOINED) == 16


@every_pair
def test_a_pair_has_the_workers_of_the_one_and_the_server_of_the_other(local: str, server: str) -> None:
    row, of_workers, of_server = algorithm_named(f"{local}+{server}"), ALGORITHMS[local], ALGORITHMS[server]
    assert (row.optimizer, row.combiners, row.phases) == (
        of_workers.optimizer,
        of_workers.combiners,
        of_workers.phases,
    )
    assert (row.server_step, row.server_bundles) == (of_server.server_step, of_server.server_bundles)
    assert row.state_bundles == of_workers.state_bundles
    hyperparameters, alone = row.parse({}), of_workers.parse({})
    assert hyperparameters.optimizer_settings(10) == alone.optimizer_settings(10)
    assert hyperparameters.periods() == alone.periods()
    assert hyperparameters.bound(7, 10) == alone.bound(7, 10)
    assert hyperparameters.for_server_step() == of_server.parse({})


@every_pair
def test_every_number_of_a_pair_has_one_meaning_and_the_default_of_its_half(local: str, server: str) -> None:
    """The workers' names are theirs; the server's begin with `server_`; its workers' rate is nobody's."""
    fields = algorithm_named(f"{local}+{server}").hyperparameters.model_fields
    of_workers = ALGORITHMS[local].hyperparameters.model_fields
    of_server = ALGORITHMS[server].hyperparameters.model_fields
    expected = {name: info.default for name, info in of_workers.items()}
    for name, info in of_server.items():
        if name != "learning_rate":
            expected["server_" + name.removeprefix("server_")] = info.default
    assert {name: info.default for name, info in fields.items()} == expected
    assert len(fields) == len(of_workers) + len(of_server) - 1


def test_a_number_reaches_its_own_half_and_no_other() -> None:
    row = algorithm_named("local-adamw+fedyogi")
    chosen = {"epsilon": 1e-7, "momentum_decay": 0.5, "server_epsilon": 0.25, "server_momentum_decay": 0.75}
    hyperparameters = row.parse(chosen)
    settings = hyperparameters.optimizer_settings(10)
    assert (settings["epsilon"], settings["momentum_decay"]) == (1e-7, 0.5)
    assert hyperparameters.for_server_step() == FedYogiHyperparameters(epsilon=0.25, momentum_decay=0.75)
    assert hyperparameters.in_asynchronous_run() == hyperparameters


def test_a_number_of_the_server_half_keeps_its_range_and_is_refused_by_its_name_here() -> None:
    row = algorithm_named("fedprox+fedadam")
    for name, value in (("server_epsilon", 1e-13), ("server_momentum_decay", 1.0), ("epsilon", 0.1)):
        with pytest.raises(InvalidMessage, match=rf"hyper-parameter {name} of fedprox\+fedadam"):
            row.parse({name: value})


@pytest.mark.parametrize(
    "name",
    [
        "fedavg+fedavg",  # nothing but the mean
        "fedadam+fedadam",  # two server steps
        "fedavg+fedlion",  # a server step that needs what other workers send
        "fed-sophia-shared+fedadam",
        "scaffold+fedadam",
        "fedavg+fedadam+fedyogi",
        "+fedadam",
        "fedavg+",
        "fedavg + fedadam",
    ],
)
def test_a_pair_that_means_nothing_is_refused_with_those_that_do(name: str) -> None:
    with pytest.raises(UnknownAlgorithm, match="local-adamw and then one of fedavgm, fedadam") as refused:
        algorithm_named(name)
    assert repr(name) in refused.value.detail


def next_state(algorithm: str, **hyperparameters: float) -> dict[str, float]:
    """One coordinate, moved by deltas of 1 and 3 that two workers sent."""
    spec = RunSpec(
        name="run",
        task="digits",
        algorithm=algorithm,
        hyperparameters=hyperparameters,
        model=(TensorSpec(name="w", shape=(1,)),),
        params_digest="0" * 64,
        rounds=1,
        cohort_size=2,
        quorum=2,
    )
    state = one(params=1, momentum=4, second_moment=1)
    step = RoundStep(spec, {"delta": [Sent(0), Sent(1)]}, partial=False)
    rows = sent(delta=[1, 3])
    weights = step.decide(lambda bundle, name, start, stop: rows[bundle][:, start:stop], 16)
    changed = step.apply(weights, state, rows, [state["params"]] * 2)
    return {bundle: float(values[0]) for bundle, values in changed.items()}


class Sent:
    """An update of one of the two."""

    local_steps, num_examples, staleness = 10, 5, 0

    def __init__(self, slot: int) -> None:
        self.slot = slot


def test_the_server_moves_by_the_numbers_of_the_server_half() -> None:
    """As Adam alone: m = 0.75·4 + 0.25·2 = 3.5, v = 0.75 + 0.25·4 = 1.75, θ = 1 + 0.5·3.5/(√1.75 + 0.25)."""
    of_adam = {"momentum_decay": 0.75, "second_moment_decay": 0.75, "epsilon": 0.25}
    there = {f"server_{name}": value for name, value in of_adam.items()}
    pair = next_state("local-adamw+fedadam", server_learning_rate=0.5, **there)
    assert pair == next_state("fedadam", server_learning_rate=0.5, **of_adam)
    assert (pair["momentum"], pair["second_moment"]) == (3.5, 1.75)
    assert pair["params"] == pytest.approx(1 + 1.75 / (np.sqrt(1.75) + 0.25), rel=1e-6)


def test_a_pair_that_is_a_row_of_the_table_is_that_row_in_all_but_its_names() -> None:
    pair, row = algorithm_named("fedavg+fedadam"), ALGORITHMS["fedadam"]
    assert (pair.optimizer, pair.server_step, pair.combiners, pair.global_state) == (
        row.optimizer,
        row.server_step,
        row.combiners,
        row.global_state,
    )
    chosen = pair.parse({"learning_rate": 0.1})
    assert chosen.optimizer_settings(10) == row.parse({}).optimizer_settings(10)
    assert chosen.for_server_step() == FedAdamHyperparameters()
