# SPDX-License-Identifier: Apache-2.0
"""Devices that come and go with the hours of their day; all their state is in arrays, a place a device.

A device seeks its next session with a hazard that follows its own local hour, h(t) = b + (1 - b)·c(t)²,
where c is a raised cosine that peaks at midnight, and b what is left at noon. How many sessions a day it
seeks is its habit, log-normal. So is a session's length; its median follows c(t)² from day to night.

The numbers are our own. Bonawitz et al. 2019 (arXiv 1902.01046) report of devices of one country that four
times as many take part at the best hour as at the worst, and that 6 to 10 % of the invited drop out.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Self

import numpy as np
from numpy.typing import NDArray

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
MINUTE_MS = 60_000
REGIONS: Mapping[str, tuple[tuple[float, float], ...]] = {
    "world": ((0.55, 7.0), (0.25, 2.0), (0.20, -5.0)),
    "one": ((1.0, -6.0),),
}
"""{name: (share of the devices, hours from UTC in the middle of the region) for each region}."""
ZONE_SPREAD_H = 1.5
SESSIONS_A_DAY = 3.5
SESSIONS_SPREAD = 0.7
"""Of the natural logarithm, over the devices."""
NOON_SHARE = 0.2
NIGHT_SESSION_MIN = 60.0
DAY_SESSION_MIN = 15.0
SESSION_SPREAD = 0.9
BREAK_SHARE = 0.2
"""So many sessions end only for a moment: the device is picked up and put back."""
BREAK_MIN = 4.0
WORK_S = 180.0
"""Median of what a device needs for one round, transfers included."""
WORK_SPREAD = 0.95
"""Of the logarithm, over the devices; with the noise of a round, the 99th percentile is 100 times the 1st."""
WORK_NOISE = 0.3
"""Of the logarithm, over the rounds of one device."""

LOOK_EVERY_MIN = 10
"""How often it is counted who is present."""

Slots = NDArray[np.int64]
Times = NDArray[np.int64]

_GRID = np.linspace(0.0, 1.0, 24 * 60 + 1)
_NIGHT = ((1 + np.cos(2 * np.pi * _GRID)) / 2) ** 2
_HAZARD = NOON_SHARE + (1 - NOON_SHARE) * _NIGHT
_SOUGHT = np.concatenate(([0.0], np.cumsum((_HAZARD[1:] + _HAZARD[:-1]) / 2)))
_SOUGHT /= _SOUGHT[-1]
"""Share of a day's hazard that has passed at each minute of it."""


class Population:
    """Who is there, when, and how fast. What chance brings does not depend on the rounds."""

    def __init__(self, devices: int, seed: int, regions: str = "world") -> None:
        self._chance = np.random.default_rng((seed, 1))
        shares, zones_h = zip(*REGIONS[regions], strict=True)
        middle_h = self._chance.choice(np.array(zones_h), size=devices, p=np.array(shares))
        zone_h = np.round(middle_h + ZONE_SPREAD_H * self._chance.standard_normal(devices))
        self._zone_ms = (zone_h * HOUR_MS).astype(np.int32)
        self.sessions_a_day = self._log_normal(SESSIONS_A_DAY, SESSIONS_SPREAD, devices)
        self.work_ms = self._log_normal(WORK_S * 1000, WORK_SPREAD, devices)
        self.starts_ms: Times = np.zeros(devices, np.int64)
        """Of the session that is, or of the next one."""
        self.ends_ms: Times = np.zeros(devices, np.int64)
        self._left_ms: Times = np.full(devices, -DAY_MS, np.int64)
        """When the session before ended."""
        self.busy_until_ms: Times = np.zeros(devices, np.int64)
        """A worker whose round went on without it learns that when it has done its work."""
        self.times_present = np.zeros(devices, np.int32)
        """Of the looks at `LOOK_EVERY_MIN`."""
        self.times_invited = np.zeros(devices, np.int32)
        self.times_counted = np.zeros(devices, np.int32)
        self._now_ms = 0
        self._draw_sessions(np.arange(devices))

    def __len__(self) -> int:
        return len(self.starts_ms)

    def copy(self) -> Self:
        """The same population with the same future."""
        return deepcopy(self)

    def advance(self, now_ms: int) -> None:
        """Let the minutes pass: whose session is over gets the next one."""
        while self._now_ms + MINUTE_MS <= now_ms:
            self._now_ms += MINUTE_MS
            self._draw_sessions(np.flatnonzero(self.ends_ms <= self._now_ms))
            if self._now_ms % (LOOK_EVERY_MIN * MINUTE_MS) == 0:
                self.times_present += self.starts_ms <= self._now_ms

    def present(self, slots: Slots, now_ms: int) -> NDArray[np.bool_]:
        return (self.starts_ms[slots] <= now_ms) & (now_ms < self.ends_ms[slots])

    def gone_since_ms(self, slots: Slots, now_ms: int) -> Times:
        """When those that are not present went."""
        return np.where(self.ends_ms[slots] <= now_ms, self.ends_ms[slots], self._left_ms[slots])

    def eligible(self, now_ms: int, lost_after_ms: int) -> Slots:
        """Slots that the server takes to be there: it learns late who went."""
        here = (self.starts_ms <= now_ms) & (now_ms < self.ends_ms + lost_after_ms)
        return np.flatnonzero(here | (now_ms < self._left_ms + lost_after_ms))

    def least(self, decile_of: NDArray[np.generic]) -> Slots:
        """The tenth of the devices that has least of something; ties by slot."""
        return np.argsort(decile_of, kind="stable")[: max(1, len(self) // 10)]

    def _draw_sessions(self, slots: Slots) -> None:
        self._left_ms[slots] = self.ends_ms[slots]
        number = len(slots)
        local_days = (self._now_ms + self._zone_ms[slots]) / DAY_MS
        day = np.floor(local_days)
        wait = self._chance.standard_exponential(number) / self.sessions_a_day[slots]
        sought = day + np.interp(local_days - day, _GRID, _SOUGHT) + wait
        day = np.floor(sought)
        hour = np.interp(sought - day, _SOUGHT, _GRID)
        starts_ms = ((day + hour) * DAY_MS).astype(np.int64) - self._zone_ms[slots]
        short = self._chance.random(number) < BREAK_SHARE
        break_ms = self._chance.exponential(BREAK_MIN * MINUTE_MS, number).astype(np.int64)
        starts_ms = np.where(short, self._now_ms + break_ms, np.maximum(starts_ms, self._now_ms))
        hour = ((starts_ms + self._zone_ms[slots]) % DAY_MS) / DAY_MS
        median_min = DAY_SESSION_MIN + (NIGHT_SESSION_MIN - DAY_SESSION_MIN) * np.interp(hour, _GRID, _NIGHT)
        length_ms = (self._log_normal(1.0, SESSION_SPREAD, number) * median_min * MINUTE_MS).astype(np.int64)
        self.starts_ms[slots] = starts_ms
        self.ends_ms[slots] = starts_ms + np.maximum(length_ms, MINUTE_MS)

    def _log_normal(self, middle: float, spread: float, number: int) -> NDArray[np.float64]:
        return middle * np.exp(spread * self._chance.standard_normal(number))
