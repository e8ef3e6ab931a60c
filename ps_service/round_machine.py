# SPDX-License-Identifier: Apache-2.0
"""One round's fate, decided from counts. PURE: no clock, no store, no randomness.

    COLLECTING ──► AGGREGATING ──► COMMITTED
         └──────────────┴────────► ABANDONED (with one sentence why)

A round of an asynchronous run is *buffered*: workers come and go as it collects, each maybe more than once,
so that none of them is waited for; its target or its deadline ends it, and nothing else does.

The law of this file: nothing happens after the end; `now_ms` never runs backwards inside a round; every
abandonment says why; no round collects past its last deadline; a lost worker can close a round early and
never abandon it. Arrivals are rows under a unique key in the store: what reaches this machine has already
been counted once and only once.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from functools import reduce

from protocol.messages import RoundStatus


@dataclass(frozen=True)
class Round:
    """Counts and fixed numbers; never arrivals, tensors or names."""

    number: int
    base_version: int
    invited: int
    """So far, in a buffered round."""
    target: int
    """So many updates close the round at once."""
    quorum: int
    """So many close it when nothing more is to come; in a buffered round, updates of so many workers."""
    opened_ms: int
    deadline_ms: int
    now_ms: int
    partial: bool = False
    """Whether only some of the run's workers take part."""
    workers: int | None = None
    """So many could have been invited when it was opened; None in a round of before this was written down."""
    extension_ms: int = 0
    extensions_left: int = 0
    """How often a deadline without a quorum moves on by `extension_ms` before the round is abandoned."""
    last_deadline_ms: int | None = None
    """It moves no further than this."""
    status: RoundStatus = RoundStatus.COLLECTING
    admitted: int = 0
    last_admitted_ms: int | None = None
    declined: int = 0
    lost: int = 0
    """Workers that have not answered and are not heard of; they may come back."""
    ended_ms: int | None = None
    reason: str | None = None
    concurrency: int | None = None
    """Of a buffered round: so many workers train at a time."""
    staleness: tuple[int, ...] = ()
    """How many of the updates were 0, 1, 2 … versions stale; empty where none can be."""
    contributors: int = 0
    """Workers from which the updates of a buffered round come."""
    refused: int = 0
    """Updates that were admitted, and found not good when they were to be combined."""

    @property
    def buffered(self) -> bool:
        return self.concurrency is not None

    @property
    def share(self) -> float:
        """What its workers are of those that train at the same time; all, unless it is buffered."""
        return 1.0 if self.concurrency is None else min(1.0, self.contributors / max(self.concurrency, 1))

    @property
    def has_quorum(self) -> bool:
        """Of updates, or, where one worker may send many, of workers."""
        return (self.contributors if self.buffered else self.admitted) >= self.quorum

    @property
    def all_answered(self) -> bool:
        return not self.buffered and self.admitted + self.declined + self.refused >= self.invited

    @property
    def beyond_hope(self) -> bool:
        """Whether too many have declined for a quorum."""
        return not self.buffered and self.invited - self.declined < self.quorum

    @property
    def at_last_deadline(self) -> bool:
        return self.last_deadline_ms is not None and self.now_ms >= self.last_deadline_ms

    @property
    def out_of_time(self) -> bool:
        """Whether the deadline ended it while answers that could have made a quorum were awaited."""
        return (
            self.status is RoundStatus.ABANDONED
            and not self.has_quorum
            and not self.all_answered
            and not self.refused
            and self.now_ms >= self.deadline_ms
        )


@dataclass(frozen=True)
class UpdateAdmitted:
    """An update was received whole and found good."""

    now_ms: int
    staleness: int | None = None
    """In a buffered round: versions made since its own."""
    again: bool = False
    """Whether the round has another update of the same worker."""


@dataclass(frozen=True)
class UpdatesWaited:
    """Updates had come for a buffered round before it was opened. They may be more than it aims at."""

    now_ms: int
    staleness: tuple[int, ...]
    """Of each."""
    contributors: int
    """Workers from which they come."""


@dataclass(frozen=True)
class UpdatesRefused:
    """Updates that had been admitted are found not good, now that they are to be combined."""

    now_ms: int
    count: int
    staleness: tuple[int, ...]
    """Of each, in a buffered round."""
    contributors: int
    """Workers from which those come that are left, in a buffered round."""


@dataclass(frozen=True)
class WorkersInvited:
    """So many more workers train for a buffered round, or for one that comes after it."""

    now_ms: int
    count: int


@dataclass(frozen=True)
class WorkerDeclined:
    """A worker will send nothing this round."""

    now_ms: int


@dataclass(frozen=True)
class WorkerLost:
    """A worker that has not answered is no longer heard of."""

    now_ms: int


@dataclass(frozen=True)
class WorkerReturned:
    """A lost worker is there again; this comes before its answer."""

    now_ms: int


@dataclass(frozen=True)
class Tick:
    """Time has passed."""

    now_ms: int


@dataclass(frozen=True)
class CloseNow:
    """The operator wants the aggregate of what is there. Without a quorum this changes nothing."""

    now_ms: int


@dataclass(frozen=True)
class Aggregated:
    """The next version is stored."""

    now_ms: int


@dataclass(frozen=True)
class AggregationFailed:
    """The updates could not be combined."""

    now_ms: int
    reason: str


@dataclass(frozen=True)
class Cancelled:
    """The run was ended by the operator."""

    now_ms: int


RoundEvent = (
    UpdateAdmitted
    | UpdatesWaited
    | UpdatesRefused
    | WorkersInvited
    | WorkerDeclined
    | WorkerLost
    | WorkerReturned
    | Tick
    | CloseNow
    | Aggregated
    | AggregationFailed
    | Cancelled
)


class RoundEffect(StrEnum):
    """What the shell must do, in the transaction or after it."""

    AGGREGATE = "aggregate"
    """Combine the admitted updates and report Aggregated or AggregationFailed. Safe to repeat."""
    RESCHEDULE = "reschedule"
    """The deadline has moved: look again then."""
    END = "end"
    """Tell the run that this round has ended."""


Step = tuple[Round, tuple[RoundEffect, ...]]


def step(round_: Round, event: RoundEvent) -> Step:
    """Give the round after the event, and what has to be done because of it."""
    if round_.status.ended:
        return round_, ()
    round_ = replace(round_, now_ms=max(round_.now_ms, event.now_ms))
    match event:
        case Cancelled():
            return _abandon(round_, "the run ended")
        case UpdatesRefused() if round_.status is RoundStatus.AGGREGATING:
            return _refuse(round_, event)
        case Aggregated() if round_.status is RoundStatus.AGGREGATING:
            return _end(round_, RoundStatus.COMMITTED, None)
        case AggregationFailed(reason=reason) if round_.status is RoundStatus.AGGREGATING:
            return _abandon(round_, f"aggregation failed: {reason}")
        case _ if round_.status is not RoundStatus.COLLECTING:
            return round_, ()
        case UpdateAdmitted(staleness=staleness, again=again):
            round_ = replace(_admit(round_, staleness), contributors=round_.contributors + (not again))
        case UpdatesWaited(staleness=each, contributors=contributors):
            round_ = reduce(_admit, each, round_)
            round_ = replace(round_, contributors=round_.contributors + contributors)
        case WorkersInvited(count=count):
            round_ = replace(round_, invited=round_.invited + count)
        case WorkerDeclined():
            round_ = replace(round_, declined=round_.declined + 1)
        case WorkerLost():
            round_ = replace(round_, lost=round_.lost + 1)
        case WorkerReturned():
            round_ = replace(round_, lost=round_.lost - 1)
        case CloseNow() if round_.has_quorum:
            return _aggregate(round_)
        case _:
            pass
    return _decide(round_)


def _admit(round_: Round, staleness: int | None) -> Round:
    counts = round_.staleness
    if staleness is not None:
        longer = [*counts, *[0] * (staleness + 1 - len(counts))]
        longer[staleness] += 1
        counts = tuple(longer)
    return replace(round_, admitted=round_.admitted + 1, last_admitted_ms=round_.now_ms, staleness=counts)


def _refuse(round_: Round, event: UpdatesRefused) -> Step:
    counts = list(round_.staleness)
    for staleness in event.staleness:
        counts[staleness] -= 1
    round_ = replace(
        round_,
        admitted=round_.admitted - event.count,
        refused=round_.refused + event.count,
        staleness=tuple(counts),
        contributors=event.contributors,
    )
    if round_.has_quorum:
        return round_, ()
    left = f"{round_.admitted} are left" + (f" of {round_.contributors} workers" if round_.buffered else "")
    return _abandon(round_, f"{round_.refused} updates were not good, {left}; the quorum is {round_.quorum}")


def _decide(round_: Round) -> Step:
    """What becomes of a collecting round with these counts at this time."""
    if round_.admitted >= round_.target and round_.has_quorum:
        return _aggregate(round_)
    if round_.all_answered or round_.now_ms >= round_.deadline_ms:
        if round_.has_quorum:
            return _aggregate(round_)
        if round_.extensions_left and not round_.beyond_hope and not round_.at_last_deadline:
            return _extend(round_)
        cause = "all workers answered" if round_.all_answered else "the deadline passed"
        updates, among = f"{round_.admitted} updates", f" of {round_.invited}"
        if round_.buffered:
            updates, among = f"{updates} of {round_.contributors} workers", ""
        return _abandon(round_, f"{cause} with {updates}; the quorum is {round_.quorum}{among}")
    if round_.buffered:
        return round_, ()
    if round_.admitted + round_.declined + round_.lost >= round_.invited and round_.has_quorum:
        return _aggregate(round_)  # whoever has not answered is lost: nothing more is to be waited for
    if round_.beyond_hope:
        return _abandon(
            round_,
            f"{round_.declined} of {round_.invited} workers declined; the quorum is {round_.quorum}",
        )
    return round_, ()


def _extend(round_: Round) -> Step:
    """Give the workers that have not answered their time again, counted from now, as far as there is any."""
    deadline_ms = round_.now_ms + round_.extension_ms
    if round_.last_deadline_ms is not None:
        deadline_ms = min(deadline_ms, round_.last_deadline_ms)
    return replace(
        round_,
        deadline_ms=deadline_ms,
        extensions_left=round_.extensions_left - 1,
    ), (RoundEffect.RESCHEDULE,)


def _aggregate(round_: Round) -> Step:
    return replace(round_, status=RoundStatus.AGGREGATING), (RoundEffect.AGGREGATE,)


def _abandon(round_: Round, reason: str) -> Step:
    return _end(round_, RoundStatus.ABANDONED, reason)


def _end(round_: Round, status: RoundStatus, reason: str | None) -> Step:
    return replace(round_, status=status, reason=reason, ended_ms=round_.now_ms), (RoundEffect.END,)
