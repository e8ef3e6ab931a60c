# SPDX-License-Identifier: Apache-2.0
"""A real worker that does not train: it sends nearly the same delta in every round.

    python -m benchmarks.exchange.worker URL NUMBER STATE_DIR        the join token in EXCHANGE_JOIN_TOKEN

Everything is the worker's own (`worker.agent`): outbox, digests, checks, retries. Its delta is NUMBER + 1
thousandths at every coordinate, so that the mean of all is known; at the first, a last place more in each
round. Equal updates are one blob, and what is sent while the round before lets go of it must be sent again.
It ends with its standard input.
"""

import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fed_sophia.interruptible import run_until_stopped
from fed_sophia.parent_watch import exit_with_parent
from protocol.codec import Bundle
from protocol.errors import FedSophiaError
from protocol.messages import Assignment
from worker.agent import serve
from worker.events import AgentEvent
from worker.local_state import Kept
from worker.options import WorkerOptions

TASK = "exchange"
STEP = 1e-3


def sent_by(number: int) -> float:
    """What this worker adds to every coordinate."""
    return STEP * (number + 1)


@dataclass(frozen=True)
class Sent:
    """What training would give."""

    bundles: Mapping[str, Bundle]
    local_steps: int
    num_examples: int = 1
    kept: Kept | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


class NearlySameDelta:
    """In the place of a trainer."""

    def __init__(self, value: float) -> None:
        self._value = value
        self._delta: Bundle | None = None

    def train(
        self,
        assignment: Assignment,
        state: Mapping[str, Bundle],
        kept: Kept | None,
        stop: threading.Event | None = None,
    ) -> Sent:
        if self._delta is None:
            self._delta = {
                name: np.full_like(values, self._value) for name, values in state["params"].items()
            }
        first = next(iter(self._delta.values()))
        first[0] = np.nextafter(first[0], np.float32(np.inf))
        return Sent({"delta": self._delta}, assignment.local_steps)

    def evaluate(
        self, state: Mapping[str, Bundle], stop: threading.Event | None = None
    ) -> tuple[int, dict[str, float]]:
        raise NotImplementedError("these workers are trainers")


def report(event: AgentEvent) -> None:
    """Nothing is said unless it goes wrong."""


def main() -> int:
    url, number, state_dir = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    exit_with_parent()
    options = WorkerOptions(url, os.environ.pop("EXCHANGE_JOIN_TOKEN"), f"w-{number:04d}", state_dir, TASK)
    try:
        run_until_stopped(serve(options, TASK, NearlySameDelta(sent_by(number)), report))
    except FedSophiaError as error:
        sys.stderr.write(f"{error.code}: {error.detail}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
