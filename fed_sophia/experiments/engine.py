# SPDX-License-Identifier: Apache-2.0
"""The seam between a trial and what trains it.

An engine does what a trial says and reports every version that is evaluated. The same trial under two
engines differs by floating point alone; and in what a model draws by itself (dropout).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from fed_sophia.experiments.trials import Trial

IN_PROCESS, WIRE = "in-process", "wire"


@dataclass(frozen=True)
class Evaluated:
    """One evaluation of one version."""

    round: int
    """Exchanges done so far."""
    seconds: float
    """Spent on training and aggregation so far; evaluation is left out."""
    bytes_up: int
    """What all workers have sent so far."""
    bytes_down: int
    metrics: Mapping[str, float]
    """`validation_accuracy`, `validation_loss`, `test_accuracy` and `test_loss`; accuracies are fractions."""


@dataclass(frozen=True)
class Outcome:
    """How a trial ended."""

    seconds: float
    """Spent on training and aggregation."""
    examples: int
    """Examples trained on: counted once for every gradient they were part of."""
    joules: float | None
    """What the device used meanwhile, evaluation left out; None where it does not tell, and over the wire,
    where it serves and measures too."""
    data: str
    """Digest of the examples that were trained and evaluated on."""
    failure: str | None
    """One sentence where the trial could not go on, as when a loss became NaN."""


Report = Callable[[Evaluated], None]


class Engine(Protocol):
    """Trains."""

    @property
    def name(self) -> str:
        """`in-process` or `wire`."""

    @property
    def environment(self) -> Mapping[str, str | int]:
        """What a reader must know to judge seconds and to repeat: device, CPU, PyTorch, threads, data."""

    def run(self, trial: Trial, report: Report) -> Outcome:
        """Train; report each version that is evaluated, in order, as `trial.is_evaluated` asks.

        Raises:
            FedSophiaError: it cannot be trained here at all, as when the data cannot be had.
        """
