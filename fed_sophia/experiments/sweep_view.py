# SPDX-License-Identifier: Apache-2.0
"""How a sweep is shown: a line that changes on a terminal and one for each trial; events for machines."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.status import Status

from fed_sophia.experiments.results import Result
from fed_sophia.experiments.scenario import Point
from fed_sophia.experiments.sweep import Progress, View
from fed_sophia.experiments.trials import Trial, point_text
from fed_sophia.output import Fields, HumanOutput, Output


class _SweepView:
    def __init__(self, output: Output, status: Status | None, final_evaluations: dict[str, int]) -> None:
        self._output, self._status, self._final_evaluations = output, status, final_evaluations

    def progress(self, progress: Progress) -> None:
        if self._status is not None:
            self._status.update(progress_text(progress))
        elif not isinstance(self._output, HumanOutput):
            self._output.event("progress", "", progress_fields(progress))

    def ended(self, number: int, of: int, trial: Trial, result: Result) -> None:
        accuracy = result.final_accuracy(self._final_evaluations[trial.scenario])
        said = result.failure or f"{accuracy:.1%} in {result.seconds:.3g} s"
        fields: Fields = {"number": number, "of": of, "key": trial.key, "final_accuracy": accuracy}
        fields |= _trial_fields(trial) | {"seconds": result.seconds, "failure": result.failure}
        self._output.event("trial", f"{number} of {of}: {_trial_text(trial)}: {said}", fields)


@contextmanager
def sweep_shown(output: Output, final_evaluations: dict[str, int]) -> Iterator[View]:
    """A view of a sweep; into a pipe it says only how each trial ended.

    Args:
        final_evaluations: {scenario: of how many evaluations its final accuracy is the mean}.
    """
    if isinstance(output, HumanOutput) and output.console.is_terminal:
        with output.console.status("") as status:
            yield _SweepView(output, status, final_evaluations)
    else:
        yield _SweepView(output, None, final_evaluations)


def progress_text(progress: Progress) -> str:
    """Where a sweep stands, for people."""
    accuracy = "" if progress.accuracy is None else f", {progress.accuracy:.1%}"
    left = "" if progress.seconds_left is None else f"; {duration_text(progress.seconds_left)} left"
    return (
        f"{progress.number} of {progress.of}: {_trial_text(progress.trial)}: "
        f"round {progress.round} of {progress.trial.rounds}{accuracy}{left}"
    )


def progress_fields(progress: Progress) -> Fields:
    """The same for machines."""
    return {
        "number": progress.number,
        "of": progress.of,
        **_trial_fields(progress.trial),
        "round": progress.round,
        "rounds": progress.trial.rounds,
        "test_accuracy": progress.accuracy,
        "seconds_left": None if progress.seconds_left is None else round(progress.seconds_left, 1),
    }


def duration_text(seconds: float) -> str:
    """A length of time for people: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _trial_text(trial: Trial) -> str:
    return f"{trial.scenario}, {trial.label} ({point_text(trial.hyperparameters)}), seed {trial.seed}"


def _trial_fields(trial: Trial) -> Fields:
    point: Point = dict(trial.hyperparameters)
    return {
        "scenario": trial.scenario,
        "label": trial.label,
        "hyperparameters": point,
        "seed": trial.seed,
    }
