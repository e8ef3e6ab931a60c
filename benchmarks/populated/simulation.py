# SPDX-License-Identifier: Apache-2.0
"""Stands where the server stands: tells the machines what happens, performs what they ask for.

Whatever there is to decide is decided by `run_machine.step` and `round_machine.step`. As in the server,
a step's effects are performed at once, the round that has ended is told to the run, and deadlines and the
run's own wakes become ticks. Where we differ: workers that came or went are told to the
run together every five minutes; the server tells it of each that comes.
"""

from collections.abc import Callable

import numpy as np

from benchmarks.populated.collection import LOST_AFTER_MS, Collection, Held
from benchmarks.populated.costs import Costs
from benchmarks.populated.population import MINUTE_MS, Population
from protocol.messages import RoundStatus, RunSpec
from ps_service import round_machine, run_machine
from ps_service.round_machine import Round, RoundEffect, RoundEvent
from ps_service.run_machine import OpenRound, Run, RunEvent
from ps_service.transitions import round_opened

TELL_EVERY_MS = 5 * MINUTE_MS
AGGREGATION_MS_AN_UPDATE = 3
"""Ours: 30 s for 10,000 updates, about what 1 MB each takes to be read and added up."""

Timer = tuple[int, Callable[[int], None]]


class Simulation:
    """One run with one population."""

    def __init__(self, spec: RunSpec, population: Population, seed: int, begin_ms: int) -> None:
        self._spec = spec
        self._population = population
        self._seed = seed
        self.run = Run()
        self.round: Round | None = None
        self.held: list[Held] = []
        self.eligible: list[tuple[int, int]] = []
        """(time, how many), each time that the run is told."""
        self.waited_ms = 0
        """Time in which no round was open, for want of workers; as exact as the run is told."""
        self.costs = Costs()
        self._collection: Collection | None = None
        self._closed_ms = 0
        self._minute_ms = begin_ms
        self._deadline_ms: int | None = None
        self._aggregated_ms: int | None = None

    def run_until(self, until_ms: int) -> None:
        """Let everything happen that comes before `until_ms`, until the run ends."""
        while not self.run.status.ended:
            due_ms, happen = min(self._timers(), key=lambda timer: timer[0])
            heard_ms = None if self._collection is None else self._collection.next_ms
            if heard_ms is not None and heard_ms < min(due_ms, until_ms):
                self._hear_workers(min(due_ms, until_ms))
            elif due_ms < until_ms:
                happen(due_ms)
            else:
                return

    def _timers(self) -> list[Timer]:
        wake_ms = run_machine.wake_ms(self._spec, self.run)
        timers: list[tuple[int | None, Callable[[int], None]]] = [
            (self._minute_ms, self._minute_passed),
            (self._deadline_ms, lambda now_ms: self._round_event(round_machine.Tick(now_ms))),
            (self._aggregated_ms, lambda now_ms: self._round_event(round_machine.Aggregated(now_ms))),
            (wake_ms, lambda now_ms: self._run_event(run_machine.Tick(now_ms, self._slots(now_ms)))),
        ]
        return [(due_ms, happen) for due_ms, happen in timers if due_ms is not None]

    def _minute_passed(self, now_ms: int) -> None:
        self._minute_ms += MINUTE_MS
        self._population.advance(now_ms)
        if now_ms % TELL_EVERY_MS:
            return
        slots = self._slots(now_ms)
        self.eligible.append((now_ms, len(slots)))
        self._run_event(run_machine.WorkersChanged(now_ms, slots))
        if self.round is None and not self.run.status.ended:
            self.waited_ms += TELL_EVERY_MS

    def _slots(self, now_ms: int) -> tuple[int, ...]:
        return tuple(self._population.eligible(now_ms, LOST_AFTER_MS).tolist())

    def _hear_workers(self, before_ms: int) -> None:
        """Tell the round what its workers do, until it asks for something."""
        collection = self._collection
        assert collection is not None and self.round is not None
        effects: tuple[RoundEffect, ...] = ()
        while not effects and (at_ms := collection.next_ms) is not None and at_ms < before_ms:
            index, event = collection.next_event()
            if event is not None:
                before = self.round
                self.round, effects = self.costs.step_round(before, event)
                collection.note(index, before, self.round)
        self._perform(effects)

    def _round_event(self, event: RoundEvent) -> None:
        assert self.round is not None
        self.round, effects = self.costs.step_round(self.round, event)
        self._perform(effects)

    def _perform(self, effects: tuple[RoundEffect, ...]) -> None:
        for effect in effects:
            round_ = self.round
            assert round_ is not None
            match effect:
                case RoundEffect.AGGREGATE:
                    self._close(round_)
                    self._aggregated_ms = round_.now_ms + AGGREGATION_MS_AN_UPDATE * round_.admitted
                case RoundEffect.RESCHEDULE:
                    self._deadline_ms = round_.deadline_ms
                case RoundEffect.END:
                    self._round_ended(round_)

    def _close(self, round_: Round) -> None:
        assert self._collection is not None
        self._collection.close()
        self._closed_ms = round_.now_ms
        self._deadline_ms = None

    def _round_ended(self, round_: Round) -> None:
        collection = self._collection
        assert collection is not None
        if self._aggregated_ms is None:
            self._close(round_)
        now_ms = round_.now_ms
        self.held.append(collection.held(round_, self._closed_ms))
        self.round = self._collection = self._aggregated_ms = None
        slots = self._slots(now_ms)
        if round_.status is RoundStatus.COMMITTED:
            self._population.times_counted[collection.admitted()] += 1
            length_ms = (round_.last_admitted_ms or now_ms) - round_.opened_ms
            self._run_event(run_machine.RoundCommitted(now_ms, slots, length_ms))
        else:
            reason, out_of_time = round_.reason or "", round_.out_of_time
            self._run_event(run_machine.RoundAbandoned(now_ms, slots, reason, out_of_time))

    def _run_event(self, event: RunEvent) -> None:
        self.run, effects = self.costs.step_run(self._spec, self.run, event)
        for effect in effects:
            match effect:
                case OpenRound():
                    self._open(effect)
                case run_machine.CancelRound():
                    self._round_event(round_machine.Cancelled(event.now_ms))

    def _open(self, opening: OpenRound) -> None:
        self.round = round_opened(opening)
        self.costs.weigh(self.run, self.round)
        slots = np.array(opening.slots, np.int64)
        self._population.times_invited[slots] += 1
        chance = np.random.default_rng((self._seed, 2, opening.number))
        self._collection = Collection(self._population, slots, chance, opening.opened_ms)
        self._deadline_ms = opening.deadline_ms
