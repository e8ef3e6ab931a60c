# SPDX-License-Identifier: Apache-2.0
"""What the two machines cost, in processor time of this thread and in memory."""

import pickle
import resource
import sys
import time
from dataclasses import dataclass, field
from statistics import median

from protocol.messages import RunSpec
from ps_service import round_machine, run_machine
from ps_service.round_machine import Round, RoundEvent
from ps_service.run_machine import OpenRound, Run, RunEvent

EVERY = 16
"""Of a round's events one in so many is timed: to read the clock costs a tenth of a step."""


def _clock_ns() -> int:
    return min(-time.thread_time_ns() + time.thread_time_ns() for _ in range(1_000))


@dataclass
class Costs:
    """Steps the machines and keeps account."""

    clock_ns: int = field(default_factory=_clock_ns)
    """What it costs to read the clock; taken off."""
    round_events: int = 0
    run_events: int = 0
    round_ns: list[int] = field(default_factory=list)
    opening_ns: list[int] = field(default_factory=list)
    other_ns: list[int] = field(default_factory=list)
    state_bytes: int = 0
    """Largest size of a run and its open round together, pickled."""

    def step_round(self, round_: Round, event: RoundEvent) -> round_machine.Step:
        self.round_events += 1
        if self.round_events % EVERY:
            return round_machine.step(round_, event)
        began_ns = time.thread_time_ns()
        stepped = round_machine.step(round_, event)
        self.round_ns.append(time.thread_time_ns() - began_ns - self.clock_ns)
        return stepped

    def step_run(self, spec: RunSpec, run: Run, event: RunEvent) -> run_machine.Step:
        self.run_events += 1
        began_ns = time.thread_time_ns()
        run, effects = run_machine.step(spec, run, event)
        took_ns = time.thread_time_ns() - began_ns - self.clock_ns
        opens = any(isinstance(effect, OpenRound) for effect in effects)
        (self.opening_ns if opens else self.other_ns).append(took_ns)
        return run, effects

    def weigh(self, run: Run, round_: Round) -> None:
        self.state_bytes = max(self.state_bytes, len(pickle.dumps((run, round_))))

    def fields(self) -> dict[str, float]:
        return {
            "round_events": self.round_events,
            "run_events": self.run_events,
            "round_step_mean_us": _mean(self.round_ns, 1e3),
            "opening_median_ms": _median(self.opening_ns, 1e6),
            "opening_max_ms": round(max(self.opening_ns, default=0) / 1e6, 1),
            "other_run_step_median_us": _median(self.other_ns, 1e3),
            "state_bytes": self.state_bytes,
        }


def peak_rss_mb() -> float:
    """Most memory that this process has had in use, in 10⁶ bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def _mean(taken_ns: list[int], unit_ns: float) -> float:
    return round(sum(taken_ns) / len(taken_ns) / unit_ns, 2) if taken_ns else 0.0


def _median(taken_ns: list[int], unit_ns: float) -> float:
    return round(median(taken_ns) / unit_ns, 2) if taken_ns else 0.0
