# SPDX-License-Identifier: Apache-2.0
"""Trials: their order, and which of them are the same."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from fed_sophia.experiments.scenario import Scenario, load_scenario
from fed_sophia.experiments.trials import Trial, point_text, trials_of
from protocol.errors import InvalidUsage
from tests.fed_sophia.experiments.formula_engine import SMALL, scenario_file


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    return load_scenario(scenario_file(tmp_path))


@pytest.fixture
def trial(scenario: Scenario) -> Trial:
    return trials_of(scenario)[0]


def test_a_seed_is_tried_everywhere_before_the_next_and_algorithms_take_turns(scenario: Scenario) -> None:
    assert [(trial.seed, trial.label, trial.point) for trial in trials_of(scenario)] == [
        (0, "fedavg", 0),
        (0, "fedavgm", 0),
        (0, "fedavg", 1),
        (0, "fedavgm", 1),
        (1, "fedavg", 0),
        (1, "fedavgm", 0),
        (1, "fedavg", 1),
        (1, "fedavgm", 1),
    ]


def test_only_what_is_wanted_is_tried(scenario: Scenario) -> None:
    assert [trial.point for trial in trials_of(scenario, seeds=[1], labels=["fedavgm"])] == [0, 1]
    chosen = trials_of(scenario, points={"fedavg": 1})
    assert [(trial.seed, trial.label, trial.point) for trial in chosen] == [
        (0, "fedavg", 1),
        (1, "fedavg", 1),
    ]


def test_an_algorithm_may_have_steps_batches_and_rounds_of_its_own(tmp_path: Path) -> None:
    own = "local_steps = 20\nbatch_size = 256\nrounds = 200\ngrid"
    text = SMALL.replace("grid", own)
    first, second, *_ = trials_of(load_scenario(scenario_file(tmp_path, text)))
    assert (first.local_steps, first.batch_size, first.rounds) == (20, 256, 200)
    assert (second.local_steps, second.batch_size, second.rounds) == (10, 32, 4)


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        ('title = "Small"', 'title = "Large"'),
        ("targets = [0.5, 0.9]", "targets = [0.7]"),
        ("final_evaluations = 1", "final_evaluations = 2"),
        ("seeds = [0, 1]", "seeds = [0]"),
        ("[0.1, 0.2] }", '[0.1, 0.2] }\nlabel = "plain"'),
        ("learning_rate = [0.1, 0.2]", "learning_rate = [0.1, 0.7]"),
        ("workers = 8", "workers = 8\nparticipation = 1.0\nlocal_steps = 10"),
        ("workers = 8", "workers = 8\nparticipation = 0.99"),  # of 8, too, are 8
        ("shards:2", "shards:02"),
        ("[0.1, 0.2] }", '[0.1, 0.2] }\ncombiners = { delta = "mean" }'),
        ("[0.1, 0.2] }", '[0.1, 0.2] }\nencodings = { delta = "f32" }'),
    ],
)
def test_what_does_not_change_the_outcome_does_not_change_the_key(
    written: str, instead: str, trial: Trial, tmp_path: Path
) -> None:
    assert written in SMALL
    other = load_scenario(scenario_file(tmp_path, SMALL.replace(written, instead), "other"))
    assert trials_of(other)[0].key == trial.key


@pytest.mark.parametrize(
    "change",
    [
        {"algorithm": "fedprox"},
        {"hyperparameters": {"learning_rate": 0.2}},
        {"combiners": {"delta": "median"}},
        {"task": "fashion-mnist-mlp"},
        {"partition": "iid"},
        {"workers": 9},
        {"participation": 0.5},
        {"local_steps": 11},
        {"batch_size": 33},
        {"rounds": 5},
        {"validation": 101},
        {"validation_seed": 1},
        {"evaluate_every": 1},
        {"iterate_average": True},
        {"seed": 1},
        {"max_delta_norm": 1.0},
        {"encodings": {"delta": "bf16"}},
        {"attack": "nan", "attackers": 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_the_outcome_changes_the_key(change: dict[str, object], trial: Trial) -> None:
    assert replace(trial, **change).key != trial.key  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [{"attack": "in-box"}, {"attackers": 3}, {"admission": False}],
    ids=lambda change: next(iter(change)),
)
def test_each_attack_is_another_trial(change: dict[str, object], trial: Trial) -> None:
    attacked = replace(trial, attack="nan", attackers=2)
    assert replace(attacked, **change).key != attacked.key  # type: ignore[arg-type]


def test_where_nobody_is_dishonest_or_sends_nothing_it_is_the_same_whether_updates_are_judged(
    trial: Trial,
) -> None:
    for each in (trial, replace(trial, attack="absent", attackers=2)):
        assert replace(each, admission=False).key == each.key


def test_a_default_that_is_spelled_out_is_the_same_trial(trial: Trial) -> None:
    said = replace(
        trial, algorithm="fedprox", hyperparameters={"learning_rate": 0.15, "proximal_weight": 0.01}
    )
    unsaid = replace(trial, algorithm="fedprox", hyperparameters={})
    assert said.key == unsaid.key


def test_a_partition_is_the_same_in_every_spelling(trial: Trial) -> None:
    keys = {
        replace(trial, partition=text).key for text in ("dirichlet:0.1", "dirichlet:0.10", "dirichlet:1e-1")
    }
    assert len(keys) == 1
    assert replace(trial, partition="dirichlet:1").key not in keys
    assert replace(trial, partition="dirichlet:x").described["partition"] == "dirichlet:x"


def test_a_task_of_the_user_s_counts_with_what_stands_in_its_file(trial: Trial, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("first")
    whole, named = replace(trial, task=str(file)), replace(trial, task=f"{file}:Mine")
    before = [whole.key, named.key]
    file.write_text("second")
    assert [whole.key, named.key] == before  # a trial that has begun is still itself
    after = [replace(whole).key, replace(named).key]
    assert len({*before, *after}) == 4
    file.write_text("first")
    assert [replace(whole).key, replace(named).key] == before
    assert "task_digest" not in trial.described


def test_a_task_whose_file_is_not_there_is_refused(trial: Trial) -> None:
    with pytest.raises(InvalidUsage, match=r"task absent\.py: No such file"):
        replace(trial, task="absent.py").key  # noqa: B018


def test_a_trial_is_described_in_full_and_its_key_is_made_of_that(trial: Trial) -> None:
    assert trial.described == {
        "algorithm": "fedavg",
        "hyperparameters": {"learning_rate": 0.1},
        "combiners": {"delta": "mean"},
        "task": "digits",
        "partition": "shards:2",
        "workers": 8,
        "cohort_size": 8,
        "local_steps": 10,
        "batch_size": 32,
        "rounds": 4,
        "validation": 100,
        "validation_seed": 1234,
        "evaluate_every": 2,
        "iterate_average": False,
        "seed": 0,
    }
    canonical = json.dumps(trial.described, sort_keys=True, separators=(",", ":"))
    assert trial.key == hashlib.sha256(canonical.encode()).hexdigest()[:16]


def test_a_key_is_the_same_in_every_process(trial: Trial) -> None:
    assert trial.key == "4a658e834a99b27d"


def test_the_last_round_is_evaluated_also_when_it_is_not_due(trial: Trial) -> None:
    odd = replace(trial, rounds=5)
    assert [number for number in range(1, 6) if odd.is_evaluated(number)] == [2, 4, 5]


def test_a_share_of_the_workers_is_rounded_up(trial: Trial) -> None:
    assert replace(trial, workers=32, participation=0.25).cohort_size == 8
    assert replace(trial, workers=10, participation=0.25).cohort_size == 3


def test_a_point_is_told_in_few_digits(trial: Trial) -> None:
    assert point_text({"clip_bound": 10 / 3, "keep_state": 1}) == "clip_bound 3.333, keep_state 1"
    assert point_text({}) == "defaults"


def test_an_estimator_of_the_hessian_is_part_of_a_key_but_where_it_is_the_one_there_always_was(
    trial: Trial,
) -> None:
    def estimating(**chosen: int | str) -> Trial:
        return replace(trial, algorithm="fed-sophia", hyperparameters=dict(chosen))

    unsaid = estimating()
    assert unsaid.key == estimating(hessian_estimator="gauss-newton-bartlett").key
    assert "hessian_estimator" not in unsaid.described["hyperparameters"]  # type: ignore[operator]  # an object
    others = [estimating(hessian_estimator="hutchinson"), estimating(hessian_batch=8)]
    assert len({each.key for each in (unsaid, *others)}) == 3
