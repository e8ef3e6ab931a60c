# SPDX-License-Identifier: Apache-2.0
"""The result of a trial, and what is computed from it alone."""

import math
from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fed_sophia import __version__
from fed_sophia.experiments.engine import Engine, Evaluated, Outcome
from fed_sophia.experiments.trials import Described, Trial
from protocol.fields import Count, Finite, Int, Label

SCHEMA_VERSION = 1
_DIGITS = 5
"""Significant digits that are kept: a line stays small, and the spread over seeds is far larger."""


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Evaluations(_Kept):
    """What was measured, as columns: the same place in each is the same evaluation."""

    round: tuple[Count, ...] = ()
    """Exchanges done so far."""
    seconds: tuple[Finite, ...] = ()
    """Of training and aggregation, without evaluation."""
    bytes_up: tuple[Count, ...] = ()
    """Of all workers so far."""
    bytes_down: tuple[Count, ...] = ()
    validation_accuracy: tuple[Finite | None, ...] = ()
    test_accuracy: tuple[Finite | None, ...] = ()
    test_loss: tuple[Finite | None, ...] = ()
    """None where it was not finite."""

    @model_validator(mode="after")
    def _columns_are_equally_long(self) -> Self:
        if len({len(getattr(self, name)) for name in type(self).model_fields}) > 1:
            raise ValueError("the columns differ in length")
        return self

    @classmethod
    def of(cls, evaluated: Sequence[Evaluated]) -> "Evaluations":
        """The columns of what an engine reported."""
        return cls(
            round=tuple(each.round for each in evaluated),
            seconds=tuple(rounded(each.seconds) for each in evaluated),
            bytes_up=tuple(each.bytes_up for each in evaluated),
            bytes_down=tuple(each.bytes_down for each in evaluated),
            validation_accuracy=_metric("validation_accuracy", evaluated),
            test_accuracy=_metric("test_accuracy", evaluated),
            test_loss=_metric("test_loss", evaluated),
        )


class Result(_Kept):
    """One line of a file of results."""

    schema_version: Annotated[Int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    """What was trained, in few letters; see `Trial.key`."""
    scenario: Label
    """The scenario for which it was trained; another may have a trial of the same key."""
    label: Label
    trial: Described
    """What was trained, in full; see `Trial.described`."""
    engine: Label
    environment: dict[Label, str | int]
    """What the engine says of itself and of where it ran, and the version of fed-sophia."""
    seconds: Finite
    examples: Count
    joules: Finite | None
    data: str | None = None
    """Digest of the examples; None in lines that were written before it was."""
    failure: str | None
    evaluations: Evaluations

    @property
    def examples_per_second(self) -> float | None:
        return self.examples / self.seconds if self.seconds > 0 else None

    def final_accuracy(self, final_evaluations: int) -> float:
        """Mean test accuracy, a fraction, of so many of the last evaluations; 0 for a trial that failed."""
        return self._mean_of_last(self.evaluations.test_accuracy, final_evaluations)

    def final_validation_accuracy(self, final_evaluations: int) -> float:
        """The same of the validation examples: what hyper-parameters are chosen by."""
        return self._mean_of_last(self.evaluations.validation_accuracy, final_evaluations)

    def _mean_of_last(self, column: Sequence[float | None], count: int) -> float:
        if self.failure is not None or not column:
            return 0.0
        last = column[-count:]
        return sum(value or 0.0 for value in last) / len(last)

    def reached(self, target: float) -> int | None:
        """Which evaluation was the first with at least this test accuracy; None if none was.

        A trial that failed reached nothing: nobody would have kept its model.
        """
        if self.failure is not None:
            return None
        column = enumerate(self.evaluations.test_accuracy)
        return next((place for place, value in column if value is not None and value >= target), None)


def result_of(trial: Trial, engine: Engine, evaluated: Sequence[Evaluated], outcome: Outcome) -> Result:
    """The line to be kept of a trial that has ended."""
    return Result(
        key=trial.key,
        scenario=trial.scenario,
        label=trial.label,
        trial=trial.described,
        engine=engine.name,
        environment={**engine.environment, "fed-sophia": __version__},
        seconds=rounded(outcome.seconds),
        examples=outcome.examples,
        joules=None if outcome.joules is None else rounded(outcome.joules),
        data=outcome.data,
        failure=outcome.failure,
        evaluations=Evaluations.of(evaluated),
    )


def rounded(value: float) -> float:
    """`value` to five significant digits."""
    return float(f"{value:.{_DIGITS}g}")


def _metric(name: str, evaluated: Sequence[Evaluated]) -> tuple[float | None, ...]:
    values = (each.metrics.get(name, math.nan) for each in evaluated)
    return tuple(rounded(value) if math.isfinite(value) else None for value in values)
