# SPDX-License-Identifier: Apache-2.0
"""What the devices that were invited to one round do while it collects, as its server hears of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from heapq import heappop, heappush

import numpy as np

from benchmarks.populated.population import WORK_NOISE, Population, Slots, Times
from ps_service.round_machine import (
    Round,
    RoundEvent,
    UpdateAdmitted,
    WorkerDeclined,
    WorkerLost,
    WorkerReturned,
)

LOST_AFTER_MS = 90_000
"""The server's default: after so long without a sign of life a worker is lost."""
LOOK_EVERY_MS = 5_000
"""The server's presence looks 18 times within that."""
DECLINE_SHARE = 0.01
"""Of those invited, at any moment of their work. Ours."""


class Standing(IntEnum):
    """What has become of a device that was invited; each is exactly one of these."""

    ASKED = 0
    """Neither answered nor lost; late if the round is over."""
    ADMITTED = 1
    DECLINED = 2
    LOST = 3


class Kind(IntEnum):
    """What a device does next."""

    ANSWERS = 0
    DECLINES = 1
    IS_MISSED = 2
    RETURNS = 3


@dataclass(frozen=True)
class Held:
    """A round that has ended."""

    round: Round
    closed_ms: int
    """When it left COLLECTING."""
    devices: Mapping[Standing, int]
    spent_s: Mapping[Standing, float]
    """Device-seconds of work; those that are late work on to their end, for nobody tells them."""
    after_close_s: float
    """Of these, what came after the round was closed."""


class Collection:
    """The devices of one round by index, ascending with their slots."""

    def __init__(
        self, population: Population, slots: Slots, chance: np.random.Generator, now_ms: int
    ) -> None:
        self._population = population
        self.slots = slots
        number = len(slots)
        noise = np.exp(WORK_NOISE * chance.standard_normal(number))
        self._declines = chance.random(number) < DECLINE_SHARE
        self._work_ms: Times = (population.work_ms[slots] * noise).astype(np.int64)
        part_done = chance.random(int(self._declines.sum()))
        self._work_ms[self._declines] = self._work_ms[self._declines] * part_done
        self._spent_ms: Times = np.zeros(number, np.int64)
        self._stops_ms: Times = np.full(number, now_ms, np.int64)
        self._standing = bytearray(number)
        self._events: list[tuple[int, int, Kind]] = []
        self._begin(now_ms)

    @property
    def next_ms(self) -> int | None:
        return self._events[0][0] if self._events else None

    def next_event(self) -> tuple[int, RoundEvent | None]:
        """What the server hears next, and from which index; None: it has noticed nothing."""
        at_ms, index, kind = heappop(self._events)
        match kind:
            case Kind.ANSWERS:
                return index, UpdateAdmitted(at_ms)
            case Kind.DECLINES:
                return index, WorkerDeclined(at_ms)
            case Kind.RETURNS:
                self._work(np.array([index]), at_ms, at_ms)
                return index, WorkerReturned(at_ms)
            case Kind.IS_MISSED:
                back_ms = int(self._population.starts_ms[self.slots[index]])
                if back_ms > at_ms:
                    heappush(self._events, (back_ms, index, Kind.RETURNS))
                    return index, WorkerLost(at_ms)
                self._work(np.array([index]), back_ms, at_ms)
                return index, None

    def note(self, index: int, before: Round, after: Round) -> None:
        """Write down how the machine counted this device."""
        if after.admitted > before.admitted:
            self._standing[index] = Standing.ADMITTED
        elif after.declined > before.declined:
            self._standing[index] = Standing.DECLINED
        elif after.lost != before.lost:
            self._standing[index] = Standing.LOST if after.lost > before.lost else Standing.ASKED

    def close(self) -> None:
        """Nobody hears of its devices any more."""
        self._events.clear()

    def admitted(self) -> Slots:
        admitted: Slots = self.slots[self._standings() == Standing.ADMITTED]
        return admitted

    def held(self, round_: Round, closed_ms: int) -> Held:
        standings = self._standings()
        devices = {each: int((standings == each).sum()) for each in Standing}
        spent_s = {each: float(self._spent_ms[standings == each].sum()) / 1000 for each in Standing}
        after_ms = np.clip(self._stops_ms - closed_ms, 0, self._spent_ms)
        return Held(round_, closed_ms, devices, spent_s, float(after_ms.sum()) / 1000)

    def _standings(self) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        return np.frombuffer(self._standing, np.uint8)

    def _begin(self, now_ms: int) -> None:
        """Those present set to work; the others went a moment ago, and nobody has noticed."""
        present = self._population.present(self.slots, now_ms)
        self._work(np.flatnonzero(present), now_ms, now_ms)
        absent = np.flatnonzero(~present)
        gone_ms = self._population.gone_since_ms(self.slots[absent], now_ms)
        self._schedule(_missed_ms(gone_ms), absent, Kind.IS_MISSED)

    def _work(self, indices: Slots, from_ms: int, now_ms: int) -> None:
        """Work until it is done or the session ends; one that is busy for a round before does that first."""
        population, slots = self._population, self.slots[indices]
        starts_ms = np.maximum(from_ms, population.busy_until_ms[slots])
        done_ms = starts_ms + self._work_ms[indices]
        ends_ms = population.ends_ms[slots]
        stops_ms = np.minimum(done_ms, ends_ms)
        self._spent_ms[indices] += np.maximum(stops_ms - starts_ms, 0)
        self._stops_ms[indices] = stops_ms
        population.busy_until_ms[slots] = np.maximum(population.busy_until_ms[slots], stops_ms)
        done, declines = done_ms <= ends_ms, self._declines[indices]
        heard_ms = np.maximum(done_ms, now_ms)
        for kind, which, at_ms in (
            (Kind.ANSWERS, done & ~declines, heard_ms),
            (Kind.DECLINES, done & declines, heard_ms),
            (Kind.IS_MISSED, ~done, _missed_ms(ends_ms)),
        ):
            self._schedule(at_ms[which], indices[which], kind)

    def _schedule(self, at_ms: Times, indices: Slots, kind: Kind) -> None:
        for at, index in zip(at_ms.tolist(), indices.tolist(), strict=True):
            heappush(self._events, (at, index, kind))


def _missed_ms(gone_ms: Times) -> Times:
    """When the server looks for the first time after a worker was silent for too long."""
    looks: Times = -(-(gone_ms + LOST_AFTER_MS) // LOOK_EVERY_MS)  # rounded up
    return looks * LOOK_EVERY_MS
