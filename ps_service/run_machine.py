# SPDX-License-Identifier: Apache-2.0
"""A run's life: when a round opens, who is invited, when it is over. PURE.

    WAITING ──► RUNNING ──► FINISHED | FAILED
       └──────────┴───────► CANCELLED

The law of this file: at most one round is open; a round is opened only by an effect of this machine;
versions grow by one for each committed round; nothing happens after the end; sampling depends on the
run's seed, the round's number and the eligible slots alone.
"""

import hashlib
from dataclasses import dataclass, replace

from protocol.messages import RunStatus


@dataclass(frozen=True)
class Run:
    """Counts and fixed numbers of a run."""

    seed: int
    rounds: int
    cohort_size: int
    quorum: int
    deadline_ms: int
    """Length of a round, in milliseconds."""
    max_abandoned_rounds: int
    status: RunStatus = RunStatus.WAITING
    round: int = 0
    version: int = 0
    abandoned_in_a_row: int = 0
    reason: str | None = None
    ended_ms: int | None = None


@dataclass(frozen=True)
class WorkersChanged:
    """Workers came or went. `slots`: those that may be invited now."""

    now_ms: int
    slots: tuple[int, ...]


@dataclass(frozen=True)
class RoundCommitted:
    """The open round made the next version."""

    now_ms: int
    slots: tuple[int, ...]


@dataclass(frozen=True)
class RoundAbandoned:
    """The open round made nothing."""

    now_ms: int
    slots: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class RunCancelled:
    """The operator ended the run."""

    now_ms: int


RunEvent = WorkersChanged | RoundCommitted | RoundAbandoned | RunCancelled


@dataclass(frozen=True)
class OpenRound:
    """Open round `number` on `base_version` and invite the workers with these slots."""

    number: int
    base_version: int
    slots: tuple[int, ...]
    quorum: int
    opened_ms: int
    deadline_ms: int
    partial: bool


@dataclass(frozen=True)
class CancelRound:
    """Cancel the open round, if there is one."""


RunEffect = OpenRound | CancelRound
Step = tuple[Run, tuple[RunEffect, ...]]


def step(run: Run, event: RunEvent) -> Step:
    """Give the run after the event, and what has to be done because of it."""
    if run.status.ended:
        return run, ()
    match event:
        case RunCancelled():
            ended = replace(run, status=RunStatus.CANCELLED, reason="cancelled by the operator")
            return replace(ended, ended_ms=event.now_ms), (CancelRound(),)
        case WorkersChanged(slots=slots):
            if run.status is not RunStatus.WAITING or len(slots) < _needed(run):
                return run, ()
            return _open(run, slots, event.now_ms)
        case RoundCommitted(slots=slots):
            run = replace(run, version=run.version + 1, abandoned_in_a_row=0)
            if run.version >= run.rounds:
                return replace(run, status=RunStatus.FINISHED, ended_ms=event.now_ms), ()
            return _open_or_wait(run, slots, event.now_ms)
        case RoundAbandoned(slots=slots, reason=reason):
            run = replace(run, abandoned_in_a_row=run.abandoned_in_a_row + 1)
            if run.abandoned_in_a_row >= run.max_abandoned_rounds:
                why = f"{run.abandoned_in_a_row} rounds in a row were abandoned; the last because {reason}"
                return replace(run, status=RunStatus.FAILED, reason=why, ended_ms=event.now_ms), ()
            return _open_or_wait(run, slots, event.now_ms)


def sample(seed: int, round_number: int, slots: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Choose `size` slots by the seed; the same whatever order `slots` come in. Ascending."""

    def rank(slot: int) -> bytes:
        return hashlib.sha256(f"cohort/{seed}/{round_number}/{slot}".encode()).digest()

    return tuple(sorted(sorted(slots, key=rank)[:size]))


def assignment_seed(seed: int, round_number: int, slot: int) -> int:
    """The seed of one worker's local training in one round, below 2^63."""
    digest = hashlib.sha256(f"train/{seed}/{round_number}/{slot}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _needed(run: Run) -> int:
    """A first round waits for a whole cohort; later ones go on with a quorum of workers."""
    return run.cohort_size if run.round == 0 else run.quorum


def _open_or_wait(run: Run, slots: tuple[int, ...], now_ms: int) -> Step:
    if len(slots) < _needed(run):
        return replace(run, status=RunStatus.WAITING), ()
    return _open(run, slots, now_ms)


def _open(run: Run, slots: tuple[int, ...], now_ms: int) -> Step:
    number = run.round + 1
    invited = sample(run.seed, number, slots, run.cohort_size)
    return replace(run, status=RunStatus.RUNNING, round=number), (
        OpenRound(
            number=number,
            base_version=run.version,
            slots=invited,
            quorum=run.quorum,
            opened_ms=now_ms,
            deadline_ms=now_ms + run.deadline_ms,
            partial=len(invited) < len(slots),
        ),
    )
