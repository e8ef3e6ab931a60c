# SPDX-License-Identifier: Apache-2.0
"""A run's life: when a round opens, who is invited, how long it may take, when the run is over. PURE.

    WAITING ◄─► RUNNING ──► FINISHED | FAILED
       │ ▲        │ ▲
       ▼ │        ▼ │
       PAUSED ◄──────        any of the three ──► CANCELLED

The law of this file: at most one round is open; a round is opened only by an effect of this machine;
versions grow by one for each committed round; nothing happens after the end, and every end but that of
the last round says why; sampling depends on the run's seed, the round's number and the eligible slots alone.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from protocol.messages import RunSpec, RunStatus
from ps_service.round_length import round_length_ms
from ps_service.sampling import sample

REMEMBERED_ROUNDS = 20
"""Committed rounds whose lengths an adaptive deadline looks at."""


@dataclass(frozen=True)
class Run:
    """What changes in a run; what does not is its spec."""

    status: RunStatus = RunStatus.WAITING
    round: int = 0
    """The last round opened."""
    round_open: bool = False
    version: int = 0
    abandoned_in_a_row: int = 0
    round_lengths_ms: tuple[int, ...] = ()
    """Of the last committed rounds, oldest first."""
    stretch: int = 0
    """How often an adaptive deadline is doubled, because rounds before ran out of time."""
    started_ms: int | None = None
    """When the first round was opened."""
    metric_until_ms: int | None = None
    """Until when the next round waits for the metric of this version."""
    reason: str | None = None
    ended_ms: int | None = None


@dataclass(frozen=True)
class WorkersChanged:
    """Workers came or went. `slots`: those that may be invited now."""

    now_ms: int
    slots: tuple[int, ...]


@dataclass(frozen=True)
class RoundCommitted:
    """The open round made the next version; its last update was admitted `length_ms` after it was opened."""

    now_ms: int
    slots: tuple[int, ...]
    length_ms: int


@dataclass(frozen=True)
class RoundAbandoned:
    """The open round made nothing."""

    now_ms: int
    slots: tuple[int, ...]
    reason: str
    out_of_time: bool = False
    """Whether the deadline passed while answers were still awaited."""


@dataclass(frozen=True)
class MetricsReported:
    """Evaluators have measured a version."""

    now_ms: int
    slots: tuple[int, ...]
    version: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Tick:
    """Time has passed."""

    now_ms: int
    slots: tuple[int, ...]


@dataclass(frozen=True)
class RunPaused:
    """The operator wants no further round; an open one goes on to its end."""

    now_ms: int


@dataclass(frozen=True)
class RunResumed:
    """The operator wants rounds again."""

    now_ms: int
    slots: tuple[int, ...]


@dataclass(frozen=True)
class RunCancelled:
    """The operator ended the run."""

    now_ms: int


RunEvent = (
    WorkersChanged
    | RoundCommitted
    | RoundAbandoned
    | MetricsReported
    | Tick
    | RunPaused
    | RunResumed
    | RunCancelled
)


@dataclass(frozen=True)
class OpenRound:
    """Open round `number` on `base_version` and invite the workers with these slots."""

    number: int
    base_version: int
    slots: tuple[int, ...]
    target: int
    quorum: int
    opened_ms: int
    deadline_ms: int
    last_deadline_ms: int | None
    """No extension goes beyond this."""
    extensions: int
    workers: int
    """So many could have been invited."""
    partial: bool
    concurrency: int | None
    """In an asynchronous run so many workers train at a time, and nobody is invited with the opening."""


@dataclass(frozen=True)
class CancelRound:
    """Cancel the open round."""


RunEffect = OpenRound | CancelRound
Step = tuple[Run, tuple[RunEffect, ...]]


def step(spec: RunSpec, run: Run, event: RunEvent) -> Step:
    """Give the run after the event, and what has to be done because of it."""
    if run.status.ended:
        return run, ()
    match event:
        case RunCancelled():
            return _end(run, RunStatus.CANCELLED, event.now_ms, "cancelled by the operator")
        case RunPaused():
            return replace(run, status=RunStatus.PAUSED), ()
        case RunResumed(slots=slots):
            if run.status is not RunStatus.PAUSED:
                return run, ()
            return _go_on(spec, replace(run, status=RunStatus.RUNNING), slots, event.now_ms)
        case RoundCommitted():
            return _committed(spec, run, event)
        case RoundAbandoned():
            return _abandoned(spec, run, event)
        case MetricsReported():
            return _measured(spec, run, event)
        case WorkersChanged(slots=slots) | Tick(slots=slots):
            return _go_on(spec, run, slots, event.now_ms)


def heeds_workers(run: Run) -> bool:
    """Whether `WorkersChanged` can change anything now; while a round is open it opens no other."""
    return not (run.status.ended or run.round_open)


def wake_ms(spec: RunSpec, run: Run) -> int | None:
    """When this run needs a Tick next; None if time alone changes nothing."""
    if run.status.ended or run.round_open:
        return None
    metric_until_ms = None if run.status is RunStatus.PAUSED else run.metric_until_ms
    times = [metric_until_ms, _end_ms(spec, run)]
    return min((time for time in times if time is not None), default=None)


def _committed(spec: RunSpec, run: Run, event: RoundCommitted) -> Step:
    run = replace(
        run,
        version=run.version + 1,
        round_open=False,
        abandoned_in_a_row=0,
        round_lengths_ms=(*run.round_lengths_ms, event.length_ms)[-REMEMBERED_ROUNDS:],
    )
    if event.length_ms <= round_length_ms(spec, run.round_lengths_ms):
        run = replace(run, stretch=0)
    if run.version >= spec.rounds:
        return _end(run, RunStatus.FINISHED, event.now_ms, None)
    if spec.target_metric is not None and spec.asynchronous is None:  # there nothing waits for anybody
        run = replace(run, metric_until_ms=event.now_ms + round(spec.target_metric.wait_s * 1000))
    return _go_on(spec, run, event.slots, event.now_ms)


def _abandoned(spec: RunSpec, run: Run, event: RoundAbandoned) -> Step:
    run = replace(run, round_open=False, abandoned_in_a_row=run.abandoned_in_a_row + 1)
    length_ms, longer_ms = (
        round_length_ms(spec, run.round_lengths_ms, stretch) for stretch in (run.stretch, run.stretch + 1)
    )
    if event.out_of_time and longer_ms > length_ms:
        run = replace(run, stretch=run.stretch + 1)
    if run.abandoned_in_a_row >= spec.max_abandoned_rounds:
        why = f"{run.abandoned_in_a_row} rounds in a row were abandoned; the last because {event.reason}"
        return _end(run, RunStatus.FAILED, event.now_ms, why)
    return _go_on(spec, run, event.slots, event.now_ms)


def _measured(spec: RunSpec, run: Run, event: MetricsReported) -> Step:
    target = spec.target_metric
    if target is None:
        return run, ()
    value = event.metrics.get(target.name)
    if value is not None and target.reached(value):
        why = f"{target.name} reached {value:.6g} with version {event.version}"
        return _end(run, RunStatus.FINISHED, event.now_ms, why)
    if event.version == run.version:
        run = replace(run, metric_until_ms=None)
    return _go_on(spec, run, event.slots, event.now_ms)


def _end(run: Run, status: RunStatus, now_ms: int, reason: str | None) -> Step:
    ended = replace(
        run, status=status, reason=reason, ended_ms=now_ms, round_open=False, metric_until_ms=None
    )
    return ended, (CancelRound(),) if run.round_open else ()


def _go_on(spec: RunSpec, run: Run, slots: tuple[int, ...], now_ms: int) -> Step:
    """Open the next round if nothing stands against it."""
    if run.round_open:
        return run, ()
    end_ms = _end_ms(spec, run)
    if end_ms is not None and now_ms >= end_ms:
        why = f"max_duration_s ({spec.max_duration_s:g}) has passed"
        return _end(run, RunStatus.FINISHED, now_ms, why)
    if run.status is RunStatus.PAUSED:
        return run, ()
    if run.metric_until_ms is not None and now_ms < run.metric_until_ms:
        return run, ()
    # a first round waits for all the workers that were asked for; later ones go on with a quorum
    if len(slots) < (spec.workers_awaited if run.round == 0 else spec.quorum):
        return replace(run, status=RunStatus.WAITING, metric_until_ms=None), ()
    return _open(spec, replace(run, metric_until_ms=None), slots, now_ms)


def _open(spec: RunSpec, run: Run, slots: tuple[int, ...], now_ms: int) -> Step:
    number = run.round + 1
    started_ms = now_ms if run.started_ms is None else run.started_ms
    run = replace(run, status=RunStatus.RUNNING, round=number, round_open=True, started_ms=started_ms)
    length_ms = round_length_ms(spec, run.round_lengths_ms, run.stretch)
    deadline_ms, end_ms = now_ms + length_ms, _end_ms(spec, run)
    if end_ms is not None:
        deadline_ms = min(deadline_ms, end_ms)
    # a fraction of the few who are left may be fewer than the spec lets make a version
    target = max(spec.cohort_of(len(slots)), spec.quorum)
    concurrency = None if spec.asynchronous is None else min(spec.concurrency, len(slots))
    most = 0 if concurrency is not None else math.ceil(target * spec.over_selection - 1e-9)
    return run, (
        OpenRound(
            number=number,
            base_version=run.version,
            slots=sample(spec.seed, number, slots, most) if most else (),
            target=target,
            quorum=spec.quorum,
            opened_ms=now_ms,
            deadline_ms=deadline_ms,
            last_deadline_ms=end_ms,
            extensions=spec.max_extensions,
            workers=len(slots),
            partial=concurrency is not None or target < len(slots),
            concurrency=concurrency,
        ),
    )


def _end_ms(spec: RunSpec, run: Run) -> int | None:
    if spec.max_duration_s is None or run.started_ms is None:
        return None
    return run.started_ms + round(spec.max_duration_s * 1000)
