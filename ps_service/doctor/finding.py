# SPDX-License-Identifier: Apache-2.0
"""What a check has found: how bad it is, in one sentence, and what to do."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

Measured = int | float | str
"""Nothing secret."""


class Level(StrEnum):
    """Whether a server would work."""

    OK = "ok"
    WARNING = "warning"
    """It would, and not for long or not well."""
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    level: Level
    said: str
    remedy: str = ""
    """What to do about it; empty if all is well."""
    measured: Mapping[str, Measured] = field(default_factory=dict)


def ok(said: str, **measured: Measured) -> Finding:
    return Finding(Level.OK, said, "", measured)


def warning(said: str, remedy: str, **measured: Measured) -> Finding:
    return Finding(Level.WARNING, said, remedy, measured)


def error(said: str, remedy: str, **measured: Measured) -> Finding:
    return Finding(Level.ERROR, said, remedy, measured)
