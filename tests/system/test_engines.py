# SPDX-License-Identifier: Apache-2.0
"""The two engines of experiments: stacked in one process, and a real server with real agents."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from fed_sophia.experiments import in_process, over_wire
from fed_sophia.experiments.engine import Engine, Evaluated, Outcome
from fed_sophia.experiments.trials import Trial
from protocol.errors import FedSophiaError

MakeEngine = Callable[[str, int | None, Path | None], Engine]

A_TRIAL = Trial(
    scenario="engines",
    label="any",
    point=0,
    algorithm="fed-sophia-shared",
    hyperparameters={},
    combiners={},
    task="digits",
    partition="shards:2",
    workers=6,
    participation=0.5,
    local_steps=3,
    batch_size=16,
    rounds=7,
    validation=200,
    validation_seed=1234,
    evaluate_every=2,
    iterate_average=False,
    seed=1,
)
THIN = {"delta": "bounded_int8", "hessian": "sqrt_int8", "direction": "unit_int8", "params": "bf16"}
LOSSES = ("validation_loss", "test_loss")
ACCURACIES = ("validation_accuracy", "test_accuracy")
ONE_EXAMPLE = 1 / 200


def held(engine: Engine, trial: Trial) -> tuple[list[Evaluated], Outcome]:
    evaluated: list[Evaluated] = []
    outcome = engine.run(trial, evaluated.append)
    return evaluated, outcome


def assert_equal_to_rounding(found: Mapping[str, float], expected: Mapping[str, float]) -> None:
    """Losses are means over hundreds of examples of what every parameter has a part in."""
    for name in LOSSES:
        assert found[name] == pytest.approx(expected[name], rel=1e-5)
    for name in ACCURACIES:  # an example on the edge may fall to either side
        assert found[name] == pytest.approx(expected[name], abs=ONE_EXAMPLE + 1e-9)


@pytest.mark.parametrize(
    ("algorithm", "changes"),
    [
        ("fed-sophia-shared", {}),
        ("fed-sophia-shared", {"participation": 1.0, "combiners": {"delta": "krum"}}),
        ("fed-sophia-shared", {"encodings": THIN}),
        ("fed-sophia", {"iterate_average": True}),
        ("fedadam", {}),
        ("scaffold", {}),
        ("local-adamw", {}),
        ("done", {"iterate_average": True}),
    ],
)
def test_a_trial_in_process_is_the_same_as_over_the_wire_to_rounding(
    algorithm: str, changes: dict[str, object]
) -> None:
    trial = replace(A_TRIAL, algorithm=algorithm, **changes)  # type: ignore[arg-type]
    expected, wired = held(over_wire.make_engine("cpu", 2, None), trial)
    found, stacked = held(in_process.make_engine("cpu", 2, None), trial)
    assert [each.round for each in found] == [each.round for each in expected] == [2, 4, 6, 7]
    for each, over in zip(found, expected, strict=True):
        assert_equal_to_rounding(each.metrics, over.metrics)
        assert (each.bytes_up, each.bytes_down) == (over.bytes_up, over.bytes_down)
    assert (stacked.failure, wired.failure) == (None, None)
    assert stacked.examples == wired.examples == trial.cohort_size * 7 * 3 * 16


@pytest.mark.parametrize("make_engine", [in_process.make_engine, over_wire.make_engine])
def test_a_trial_that_diverges_ends_with_a_sentence_and_reports_nothing(make_engine: MakeEngine) -> None:
    wild = {"learning_rate": 1e9, "proximal_weight": 1e9}  # each step goes 1e18 times as far as the last
    trial = replace(A_TRIAL, algorithm="fedprox", hyperparameters=wild, rounds=8)
    evaluated, outcome = held(make_engine("cpu", 2, None), trial)
    assert outcome.failure is not None
    assert outcome.failure.startswith("round 1: ")
    assert evaluated == []


BREAKS_DOWN = """
import torch
from torch import nn
from worker.tasks.digits import Digits


class Worn(nn.Linear):
    passes = 0

    def forward(self, inputs):
        if self.training:
            Worn.passes += 1
        if Worn.passes > 40:
            raise RuntimeError("worn out")
        return super().forward(inputs)


class WornDigits(Digits):
    name = "worn-digits"

    def model(self):
        return nn.Sequential(Worn(64, 16), nn.ReLU(), nn.Linear(16, 10))
"""


@pytest.mark.parametrize("make_engine", [in_process.make_engine, over_wire.make_engine])
def test_a_trial_that_broke_down_has_no_outcome(make_engine: MakeEngine, tmp_path: Path) -> None:
    """Nothing may be kept of it: kept, it would count as a bad point of its algorithm."""
    task = tmp_path / "worn_digits.py"
    task.write_text(BREAKS_DOWN)
    trial = replace(A_TRIAL, algorithm="fedavg", task=f"{task}:WornDigits", rounds=30)
    with pytest.raises(FedSophiaError, match=r"worn out|the run failed"):
        held(make_engine("cpu", 2, None), trial)
