# SPDX-License-Identifier: Apache-2.0
"""What a round took of the machine: time a step, throughput, memory and energy, as metrics of the update.

A trainer makes one `Meter`, opens a round of it just before the first local step, tells it of every step that
is done, and asks for the metrics once it has read the round's loss:

    measured = meter.round()
    for …:
        …                                        # a whole local step
        measured.step_done(refreshed=…)
    loss = mean_loss.item()                      # waits for the device, if anything has to
    metrics |= measured.metrics(examples=…, terms=…)

Nothing here waits for a device at a step: on CUDA the moments are events of the stream that the steps run in,
which the device notes when it comes to them. What cannot be measured is left out, and fails no round.

Memory and energy are not a worker's own: the one is what this process has of the device, the other what the
whole device took, whoever else is at work there.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Generic, TypeVar

import torch

from worker.energy import Counter, EnergyMeter, counters_for
from worker.machine import device_uuid

TIMED_STEPS = 10_000
"""So many steps of a round, the first, are timed one by one; throughput is of all of them."""
_MILLISECONDS = 1e3
_BYTES_OF_MAXRSS = 1 if sys.platform == "darwin" else 1024

Moment = TypeVar("Moment")


@dataclass(frozen=True)
class Stopwatch(Generic[Moment]):
    """Notes moments in the order of the work, which may be done later."""

    note: Callable[[], Moment]
    seconds_between: Callable[[Moment, Moment], float]
    """Of two moments that have come; waits for them if they have not."""


class Meter:
    """Measures rounds on one device."""

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        """Find out what can be measured here.

        Args:
            clock: seconds, for devices whose work is done when a call returns.
        """
        self._device = device
        self._clock = clock
        self._counters = counters_for(device_uuid(device)) if device.type in ("cpu", "cuda") else ()

    def round(self) -> "MeasuredRound[torch.cuda.Event] | MeasuredRound[float]":
        """Begin to measure: the first local step begins now."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return MeasuredRound(cuda_stopwatch(self._device), self._peak_memory_bytes, self._counters)
        stopwatch = Stopwatch(self._clock, _difference)
        # on mps a call returns before its work is done: only a round's whole time means something there
        timed = TIMED_STEPS if self._device.type == "cpu" else 0
        return MeasuredRound(stopwatch, self._peak_memory_bytes, self._counters, timed)

    def _peak_memory_bytes(self) -> int | None:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return peak_resident_bytes() if self._device.type == "cpu" else None


class MeasuredRound(Generic[Moment]):
    """What is measured of a round, from its making to its metrics."""

    def __init__(
        self,
        stopwatch: Stopwatch[Moment],
        peak_memory_bytes: Callable[[], int | None],
        counters: Sequence[Counter],
        timed_steps: int = TIMED_STEPS,
    ) -> None:
        self._stopwatch, self._note = stopwatch, stopwatch.note
        self._peak_memory_bytes = peak_memory_bytes
        self._timed_steps = timed_steps
        self._energy = EnergyMeter(counters)
        self._refreshed: list[bool] = []
        self._moments = [self._note()]
        self._last = self._moments[0]

    def step_done(self, refreshed: bool) -> None:
        """Say that a local step is over, and the next begins.

        Args:
            refreshed: whether an estimate of the Hessian was taken in it.
        """
        self._last = self._note()
        if len(self._refreshed) < self._timed_steps:
            self._moments.append(self._last)
            self._refreshed.append(refreshed)

    def metrics(self, examples: int, terms: int | None = None, sharing: int = 1) -> dict[str, float]:
        """Give the figures of the round, those that are known; call it when its result has been read.

        Args:
            examples: trained on in all its steps, by one worker.
            terms: loss terms of these, such as tokens; None where they are not counted.
            sharing: so many workers took these steps together, and share what energy they took.
        """
        figures = self._step_times()
        seconds = self._stopwatch.seconds_between(self._moments[0], self._last)
        if seconds > 0:
            figures["examples_per_second"] = examples / seconds
            if terms is not None and terms > examples:
                figures["tokens_per_second"] = terms / seconds
        peak = self._peak_memory_bytes()
        if peak is not None:
            figures["peak_memory_bytes"] = float(peak)
        joules = self._energy.joules()
        if joules is not None:
            figures["energy_joules"] = joules / sharing
        return figures

    def _step_times(self) -> dict[str, float]:
        """Medians: the first step of a process also loads what later ones have at hand."""
        pairs = zip(self._moments, self._moments[1:], self._refreshed, strict=False)
        times: dict[bool, list[float]] = {True: [], False: []}
        for begun, ended, refreshed in pairs:
            times[refreshed].append(self._stopwatch.seconds_between(begun, ended))
        if not times[False]:
            return {}
        plain = median(times[False])
        figures = {"step_ms": plain * _MILLISECONDS}
        if times[True]:
            figures["refresh_ms"] = (median(times[True]) - plain) * _MILLISECONDS
        return figures


def cuda_stopwatch(device: torch.device) -> Stopwatch[torch.cuda.Event]:
    """Notes moments in the current stream of a CUDA device."""

    def note() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch's
        event.record(torch.cuda.current_stream(device))
        return event

    def seconds_between(first: torch.cuda.Event, second: torch.cuda.Event) -> float:
        second.synchronize()
        return float(first.elapsed_time(second)) / _MILLISECONDS

    return Stopwatch(note, seconds_between)


def peak_resident_bytes() -> int | None:
    """The most memory that this process has ever had; None where the system does not say."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _BYTES_OF_MAXRSS


def _difference(first: float, second: float) -> float:
    return second - first
