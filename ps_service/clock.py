# SPDX-License-Identifier: Apache-2.0
"""Time as an argument: the server asks a `Clock`, never the system."""

import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Gives the time."""

    def now_ms(self) -> int:
        """UTC in integer milliseconds."""
        ...

    def follow(self, utc_ms: int) -> None:
        """Come a little nearer to the time of others who must agree with this one; never go backwards."""
        ...


MOST_BETWEEN_NS = 10 * 10**9
"""Whoever has heard of nobody for long does not make up for all of it at once."""


def elapsed_ns() -> int:
    """Time that no setting of the clock changes; on Linux it counts a suspended machine's sleep too."""
    boot_time = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic_ns() if boot_time is None else time.clock_gettime_ns(boot_time)


class SystemClock:
    """The machine's own clock: UTC as it was at the start, and the time that has passed since.

    Not UTC at each call: a machine's clock that is set back would lengthen every deadline. For the same
    reason a start never comes before what was written down at the last one.
    """

    def __init__(
        self,
        utc_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = elapsed_ns,
        not_before_ms: int = 0,
    ) -> None:
        """Args: utc_ns: asked once; servers that share a database ask that, and agree."""
        self._monotonic_ns = monotonic_ns
        self._told_ms = 0
        self._followed_ns = monotonic_ns()
        self._anchor_ns = max(utc_ns(), not_before_ms * 1_000_000) - self._followed_ns

    def now_ms(self) -> int:
        self._told_ms = max(self._told_ms, (self._anchor_ns + self._monotonic_ns()) // 1_000_000)
        return self._told_ms

    def follow(self, utc_ms: int) -> None:
        """By half a percent of the time that has passed since the last call: crystals differ by less.

        Whoever's clock is set moves no deadline at once.
        """
        now_ns = self._monotonic_ns()
        most_ns = min(now_ns - self._followed_ns, MOST_BETWEEN_NS) // 200
        self._followed_ns = now_ns
        self._anchor_ns += max(-most_ns, min(utc_ms * 1_000_000 - (self._anchor_ns + now_ns), most_ns))
