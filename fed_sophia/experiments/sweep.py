# SPDX-License-Identifier: Apache-2.0
"""A sweep: trials trained one after the other, each kept the moment it has ended."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fed_sophia.experiments.engine import Engine, Evaluated
from fed_sophia.experiments.results import Result, result_of
from fed_sophia.experiments.results_file import append_result
from fed_sophia.experiments.trials import Trial


@dataclass(frozen=True)
class Progress:
    """Where a sweep stands while it trains."""

    trial: Trial
    number: int
    """Which of the trials that are to be trained, counted from 1."""
    of: int
    round: int
    accuracy: float | None
    """Test accuracy of the last evaluation, a fraction; None before the first."""
    seconds_left: float | None
    """An estimate for all that is still to be trained; None before anything was measured."""


class View(Protocol):
    """Who is told how a sweep goes."""

    def progress(self, progress: Progress) -> None: ...

    def ended(self, number: int, of: int, trial: Trial, result: Result) -> None: ...


def untried(trials: Sequence[Trial], done: Collection[str]) -> list[Trial]:
    """The trials whose key is not done, each key once."""
    return list({trial.key: trial for trial in reversed(trials) if trial.key not in done}.values())[::-1]


class Sweep:
    """Trials, what trains them, and where their results go."""

    def __init__(
        self,
        trials: Sequence[Trial],
        engine: Engine,
        folder: Path,
        view: View,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trials, self._engine, self._folder, self._view, self._now_s = (
            trials,
            engine,
            folder,
            view,
            now_s,
        )

    def run(self) -> list[Result]:
        """Train in order and add each result to FOLDER/SCENARIO.jsonl as its trial ends.

        A trial that is broken off leaves nothing there.

        Raises:
            FedSophiaError: the engine cannot train a trial here at all.
            OSError: a result cannot be written.
        """
        begun_s = self._now_s()
        return [self._train(number, begun_s) for number in range(1, len(self._trials) + 1)]

    def _train(self, number: int, begun_s: float) -> Result:
        trial, evaluated = self._trials[number - 1], list[Evaluated]()

        def report(each: Evaluated) -> None:
            evaluated.append(each)
            self._view.progress(self._progress(number, each, begun_s))

        self._view.progress(self._progress(number, None, begun_s))
        outcome = self._engine.run(trial, report)
        result = result_of(trial, self._engine, evaluated, outcome)
        append_result(self._folder / f"{trial.scenario}.jsonl", result)
        self._view.ended(number, len(self._trials), trial, result)
        return result

    def _progress(self, number: int, last: Evaluated | None, begun_s: float) -> Progress:
        trial = self._trials[number - 1]
        round_number = last.round if last else 0
        done_work = (
            sum(map(work_of, self._trials[: number - 1])) + work_of(trial) * round_number / trial.rounds
        )
        return Progress(
            trial=trial,
            number=number,
            of=len(self._trials),
            round=round_number,
            accuracy=last.metrics.get("test_accuracy") if last else None,
            seconds_left=seconds_left(
                self._now_s() - begun_s, done_work, all_work=sum(map(work_of, self._trials))
            ),
        )


def work_of(trial: Trial) -> float:
    """How much there is to train, in examples: to compare trials with each other."""
    return float(trial.rounds * trial.cohort_size * trial.local_steps * trial.batch_size)


def seconds_left(elapsed_s: float, done_work: float, all_work: float) -> float | None:
    """How long the rest takes if it goes on as it went; None before anything is done."""
    if done_work <= 0:
        return None
    return elapsed_s * (all_work - done_work) / done_work
