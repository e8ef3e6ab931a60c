# SPDX-License-Identifier: Apache-2.0
"""What rounds cost when somebody last accepted it, and whether what they cost now is a regression.

No figure is a time: each is a ratio to the floors of its own run, or counts bytes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from fed_sophia.output import Fields
from protocol.errors import InvalidUsage

BASELINE = Path(__file__).with_name("baseline.json")
Costs = Mapping[str, Mapping[str, float]]
"""{row: {name of a figure: its value}}"""
_ON_DISK = TypeAdapter(dict[str, dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]]])


@dataclass(frozen=True)
class Figure:
    """Something that is compared with what was accepted."""

    name: str
    title: str
    may_rise: float
    """A share of the accepted value."""
    may_fall: float = 1.0
    """The same; 1: as far as it can."""


# In twelve runs on a machine that others used much, the highest was 1.6 × the median of a time, 1.3 × that of
# CPU time, 1.1 × that of memory and 1.002 × that of bytes. What is accepted may come from a quieter hour.
FIGURES = (
    Figure("over_floor", "time / floor", may_rise=1.0),
    Figure("over_tcp", "time / TCP", may_rise=1.0),
    Figure("server_cpu_over_floor", "server CPU / floor", may_rise=0.5),
    Figure("workers_cpu_over_floor", "worker CPU / floor", may_rise=0.5),
    Figure("server_memory_mb", "server MB", may_rise=0.3),
    Figure("models_moved", "models moved", may_rise=0.01, may_fall=0.01),
)


class Verdict(StrEnum):
    """What comes of a comparison."""

    FINE = "fine"
    REGRESSED = "regressed"
    NEW = "new"


@dataclass(frozen=True)
class Comparison:
    """One figure of one row, now and when it was accepted."""

    row: str
    figure: Figure
    now: float
    accepted: float | None

    @property
    def allowed(self) -> tuple[float, float] | None:
        """(least, most)."""
        if self.accepted is None:
            return None
        return self.accepted * (1 - self.figure.may_fall), self.accepted * (1 + self.figure.may_rise)

    @property
    def verdict(self) -> Verdict:
        if self.allowed is None:
            return Verdict.NEW
        least, most = self.allowed
        return Verdict.FINE if least <= self.now <= most else Verdict.REGRESSED

    def allowed_text(self) -> str:
        if self.allowed is None:
            return ""
        least, most = self.allowed
        return f"{least:.4g} – {most:.4g}" if least else f"≤ {most:.4g}"

    def sentence(self) -> str:
        found = f"{self.row}, {self.figure.title}: {self.now:.4g}"
        if self.accepted is None:
            return f"{found}, and none has been accepted; --accept does so"
        return f"{found}, where {self.accepted:.4g} is accepted, and {self.allowed_text()} allowed"

    def fields(self) -> Fields:
        """What one line of JSON says."""
        return {
            "row": self.row,
            "figure": self.figure.name,
            "now": self.now,
            "accepted": self.accepted,
            "allowed": self.allowed,
            "verdict": self.verdict.value,
        }


def figures_of(row: Fields) -> dict[str, float]:
    """What is compared of a row of `benchmarks.round_cost`."""

    def number(name: str) -> float:
        value = row[name]
        assert isinstance(value, int | float)
        return value

    floor_cpu_s = number("floor_server_cpu_s")
    figures = {
        "over_floor": number("over_floor"),
        "over_tcp": number("over_tcp"),
        "server_cpu_over_floor": number("server_cpu_s_per_round") / floor_cpu_s,
        "workers_cpu_over_floor": number("workers_cpu_s_per_round") / floor_cpu_s,
        "server_memory_mb": (number("server_peak_bytes") - number("server_idle_bytes")) / 1e6,
        "models_moved": number("models_moved"),
    }
    return {name: round(value, 3) for name, value in figures.items()}


def compare(now: Costs, accepted: Costs) -> list[Comparison]:
    """Every figure there is now, row by row."""
    return [
        Comparison(row, figure, figures[figure.name], accepted.get(row, {}).get(figure.name))
        for row, figures in now.items()
        for figure in FIGURES
        if figure.name in figures
    ]


def complaints(comparisons: Sequence[Comparison]) -> list[str]:
    """A sentence for each that is not fine."""
    return [each.sentence() for each in comparisons if each.verdict is not Verdict.FINE]


def read(path: Path) -> Costs:
    """What was accepted.

    Raises:
        InvalidUsage: nothing was, or the file does not hold rows of positive numbers.
    """
    try:
        return _ON_DISK.validate_json(path.read_bytes())
    except FileNotFoundError:
        raise InvalidUsage(f"{path} does not exist: --accept writes it") from None
    except ValidationError as error:
        found = error.errors()[0]
        place = " ".join(map(str, found["loc"])) or "the whole"
        raise InvalidUsage(f"{path}: {place}: {found['msg']}; --accept writes it anew") from None


def write(path: Path, costs: Costs) -> None:
    """Accept these, and no others."""
    text = json.dumps(costs, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
