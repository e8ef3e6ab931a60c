# SPDX-License-Identifier: Apache-2.0
"""A scenario, and an engine that computes what it reports: accuracies that can be worked out by hand."""

from collections.abc import Callable, Mapping
from pathlib import Path

from fed_sophia.experiments.engine import Evaluated, Outcome, Report
from fed_sophia.experiments.results import Evaluations, Result
from fed_sophia.experiments.trials import Trial

SMALL = """
title = "Small"
task = "digits"
partition = "shards:2"
workers = 8
rounds = 4
validation = 100
evaluate_every = 2
final_evaluations = 1
targets = [0.5, 0.9]
seeds = [0, 1]

[[algorithms]]
name = "fedavg"
grid = { learning_rate = [0.1, 0.2] }

[[algorithms]]
name = "fedavgm"
fixed = { learning_rate = 0.1 }
points = [{ server_learning_rate = 0.5 }, { server_learning_rate = 1.0 }]
"""

Accuracy = Callable[[Trial, int], float]


def by_rate(trial: Trial, round_number: int) -> float:
    """Test accuracy: the learning rate, a tenth for a round, a hundredth for a seed."""
    return float(trial.hyperparameters["learning_rate"]) + round_number / 10 + trial.seed / 100


class FormulaEngine:
    """Reports accuracies by a formula; a round takes a second, 2 MB up and 3 MB down."""

    name = "formula"

    def __init__(
        self,
        test: Accuracy = by_rate,
        validation: Accuracy = by_rate,
        failure: Callable[[Trial], str | None] = lambda trial: None,
    ) -> None:
        self._test, self._validation, self._failure = test, validation, failure
        self.trained: list[Trial] = []

    @property
    def environment(self) -> Mapping[str, str | int]:
        return {"device": "paper", "threads": 1}

    def run(self, trial: Trial, report: Report) -> Outcome:
        self.trained.append(trial)
        for number in range(1, trial.rounds + 1):
            if trial.is_evaluated(number):
                metrics = {
                    "validation_accuracy": self._validation(trial, number),
                    "test_accuracy": self._test(trial, number),
                    "test_loss": 1.0 / number,
                }
                report(Evaluated(number, float(number), 2_000_000 * number, 3_000_000 * number, metrics))
        return Outcome(float(trial.rounds), 100 * trial.rounds, None, "paper", self._failure(trial))


def scenario_file(folder: Path, text: str = SMALL, name: str = "small") -> str:
    """The path of a file with this text."""
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def a_result(
    test: tuple[float, ...] = (0.4, 0.6, 0.8),
    validation: tuple[float, ...] | None = None,
    *,
    seed: int = 0,
    failure: str | None = None,
    joules: float | None = None,
) -> Result:
    """A result with these accuracies after rounds 2, 4, 6 …: 2 s, 10 MB up and 20 MB down for two rounds."""
    places = range(1, len(test) + 1)
    return Result(
        key=f"{seed:016x}",
        scenario="small",
        label="fedavg",
        trial={"algorithm": "fedavg", "hyperparameters": {"learning_rate": 0.1}, "seed": seed},
        engine="formula",
        environment={"device": "paper"},
        seconds=2.0 * len(test),
        examples=100 * len(test),
        joules=joules,
        failure=failure,
        evaluations=Evaluations(
            round=tuple(2 * place for place in places),
            seconds=tuple(2.0 * place for place in places),
            bytes_up=tuple(10_000_000 * place for place in places),
            bytes_down=tuple(20_000_000 * place for place in places),
            validation_accuracy=validation or test,
            test_accuracy=test,
            test_loss=tuple(1.0 for _ in places),
        ),
    )
