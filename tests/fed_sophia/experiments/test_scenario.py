# SPDX-License-Identifier: Apache-2.0
"""Scenario files: what they mean, and how a wrong one is refused."""

from pathlib import Path

import pytest

from fed_sophia.experiments.scenario import load_scenario, scenario_files
from fed_sophia.experiments.trials import point_text
from protocol.algorithms import ALGORITHMS
from protocol.errors import InvalidUsage
from tests.fed_sophia.experiments.formula_engine import SMALL, scenario_file
from worker.tasks import TASKS
from worker.tasks.partition import parse_partition

SHIPPED = sorted(scenario_files())


def test_a_file_is_called_by_its_name_and_its_algorithms_by_theirs(tmp_path: Path) -> None:
    scenario = load_scenario(scenario_file(tmp_path))
    assert scenario.name == "small"
    assert [each.label for each in scenario.algorithms] == ["fedavg", "fedavgm"]


def test_a_grid_is_every_combination_and_the_last_name_turns_fastest(tmp_path: Path) -> None:
    head, *_ = SMALL.partition("[[algorithms]]")
    grid = 'name = "fedavgm"\ngrid = { learning_rate = [0.1, 0.2], momentum_decay = [0.5, 0.9] }'
    scenario = load_scenario(scenario_file(tmp_path, f"{head}[[algorithms]]\n{grid}\n"))
    assert scenario.algorithms[0].all_points == (
        {"learning_rate": 0.1, "momentum_decay": 0.5},
        {"learning_rate": 0.1, "momentum_decay": 0.9},
        {"learning_rate": 0.2, "momentum_decay": 0.5},
        {"learning_rate": 0.2, "momentum_decay": 0.9},
    )


def test_what_is_fixed_is_part_of_every_point_but_tells_none_from_the_others(tmp_path: Path) -> None:
    fedavgm = load_scenario(scenario_file(tmp_path)).contender("fedavgm")
    assert fedavgm.all_points[1] == {"learning_rate": 0.1, "server_learning_rate": 1.0}
    assert fedavgm.varied(fedavgm.all_points[1]) == {"server_learning_rate": 1.0}


@pytest.mark.parametrize(
    ("written", "instead", "said"),
    [
        ("rounds = 4", "", "rounds: Field required"),
        ("rounds = 4", "rounds = 4.0", "rounds: Input should be a valid integer"),
        ("rounds = 4", "rounds = 4\nround = 5", "round: Extra inputs"),
        ("rounds = 4", "rounds = ", "Invalid value"),
        ("seeds = [0, 1]", "seeds = []", "seeds: "),
        ("seeds = [0, 1]", "seeds = [1, 1]", "seeds: one stands twice"),
        ("workers = 8", "workers = 8\nparticipation = 0.0", "participation: "),
        ("workers = 8", 'workers = 8\nname = "x"', "name: it is the file's own"),
        ("[0.5, 0.9]", "[50]", "targets: 0: "),
        ("final_evaluations = 1", "final_evaluations = 3", "final_evaluations: 3: fedavg has 2, one every 2"),
        ('name = "fedavgm"', 'name = "fedmagic"', "algorithms: fedmagic: algorithm 'fedmagic': expected one"),
        ('name = "fedavgm"', 'name = "fedavg"', "server_learning_rate of fedavg"),
        ("[0.1, 0.2]", "[0.1, -0.2]", "algorithms: fedavg: hyper-parameter learning_rate of fedavg"),
        ("[0.1, 0.2]", "[0.1, 0.1]", "algorithms: fedavg: two of the points are the same"),
        ("[0.1, 0.2] }", "[0.1, 0.2] }\npoints = [{}]", "algorithms: fedavg: expected a grid or points"),
        ("[0.1, 0.2] }", '[0.1, 0.2] }\nlabel = "fedavgm"', "two have the label 'fedavgm'"),
        (
            "[0.1, 0.2] }",
            '[0.1, 0.2] }\ncombiners = { hessian = "mean" }',
            "fedavg sends no bundle 'hessian'",
        ),
        (
            "[0.1, 0.2] }",
            '[0.1, 0.2] }\nencodings = { delta = "bounded_int4" }',
            "encodings: bounded_int4: nothing bounds the delta of fedavg",
        ),
        (
            "[0.1, 0.2] }",
            '[0.1, 0.2] }\nencodings = { delta = "int4" }',
            "encodings: expected some of f32, bf16, f16",
        ),
    ],
)
def test_a_wrong_file_is_refused_by_file_and_field(
    written: str, instead: str, said: str, tmp_path: Path
) -> None:
    path = scenario_file(tmp_path, SMALL.replace(written, instead))
    with pytest.raises(InvalidUsage) as refusal:
        load_scenario(path)
    assert path in refusal.value.detail
    assert said in refusal.value.detail


def test_an_algorithm_with_fewer_points_than_another_must_say_why(tmp_path: Path) -> None:
    fewer = SMALL.replace("[0.1, 0.2]", "[0.1]")
    with pytest.raises(InvalidUsage, match="fedavg has 1 points and fedavgm has 2"):
        load_scenario(scenario_file(tmp_path, fewer))
    excused = fewer.replace("[0.1] }", '[0.1] }\nfewer_points_because = "its rate is known"')
    assert load_scenario(scenario_file(tmp_path, excused)).algorithms[0].fewer_points_because is not None


def test_curvature_over_a_tiny_batch_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    text = SMALL.replace('name = "fedavg"\ngrid', 'name = "fed-sophia-shared"\nbatch_size = 4\ngrid')
    with pytest.raises(InvalidUsage, match="fed-sophia-shared: batch_size 4"):
        load_scenario(scenario_file(tmp_path, text.replace("learning_rate = [", "max_round_step = [")))


def test_a_name_that_is_no_scenario_is_answered_with_those_there_are() -> None:
    with pytest.raises(
        InvalidUsage, match=r"'mlp-shard': expected path/to/file.toml or one of .*mlp-shards2"
    ):
        load_scenario("mlp-shard")


def test_a_scenario_of_the_current_directory_goes_before_one_of_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "benchmarks" / "experiments"
    folder.mkdir(parents=True)
    scenario_file(folder, name="digits")
    monkeypatch.chdir(tmp_path)
    assert load_scenario("digits").title == "Small"
    assert load_scenario("mlp-shards2").workers == 32


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_scenario_names_only_what_there_is(name: str) -> None:
    scenario = load_scenario(name)
    assert scenario.task in TASKS
    parse_partition(scenario.partition)
    assert {each.name for each in scenario.algorithms} <= set(ALGORITHMS)


def test_the_shipped_scenarios_hold_the_eight_settings_that_are_compared_everywhere() -> None:
    settings = {
        (scenario.task, scenario.partition, scenario.participation)
        for scenario in map(load_scenario, SHIPPED)
        if scenario.local_steps == 10 and scenario.rounds == 100
    }
    assert settings >= {
        (f"fashion-mnist-{model}", partition, participation)
        for model in ("mlp", "cnn")
        for partition in ("shards:2", "dirichlet:0.1")
        for participation in (1.0, 0.25)
    }


def test_a_word_tells_points_apart_and_has_no_edge(tmp_path: Path) -> None:
    head, *_ = SMALL.partition("[[algorithms]]")
    words = 'hessian_estimator = ["gauss-newton-bartlett", "empirical-fisher", "hutchinson"]'
    grid = f'name = "fed-sophia"\ngrid = {{ {words}, clip_bound = [1.0, 2.0, 4.0] }}'
    [fed_sophia] = load_scenario(scenario_file(tmp_path, f"{head}[[algorithms]]\n{grid}\n")).algorithms
    point = fed_sophia.all_points[-1]
    assert fed_sophia.varied(point) == {"hessian_estimator": "hutchinson", "clip_bound": 4.0}
    assert fed_sophia.on_edge(point) == {"clip_bound": 4.0}
    assert point_text(point) == "hessian_estimator hutchinson, clip_bound 4"


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ('{ hessian_estimator = "hutchinson" }', "fed-sophia-shared: hessian_estimator: hutchinson may be"),
        ("{ hessian_batch = 33 }", "fed-sophia-shared: hessian_batch 33: a mini-batch has 32"),
        ("{ hessian_batch = 7 }", "fed-sophia-shared: hessian_batch 7: .* at least 8"),
    ],
)
def test_estimates_that_no_run_may_be_made_of_are_refused_in_a_scenario_too(
    chosen: str, said: str, tmp_path: Path
) -> None:
    head, *_ = SMALL.partition("[[algorithms]]")
    text = f'{head}[[algorithms]]\nname = "fed-sophia-shared"\nfixed = {chosen}\n'
    with pytest.raises(InvalidUsage, match=said):
        load_scenario(scenario_file(tmp_path, text))
