# SPDX-License-Identifier: Apache-2.0
"""When idle workers come back: spread, so that those who were sent home together do not return together,
and the more seldom the more of them there are.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

RETURNS_PER_S = 200
"""So many idle workers are asked to come back each second after a stop."""
RETURNS_AT_REST_PER_S = 8
"""About so many idle workers come back each second while there is nothing to do, however many wait."""
TOGETHER_S = 2.0
"""Waits of a crowd end at multiples of this: the twenty or so who leave, and are back a moment later, share a
look and a processor that is warm. One at a time, each would cost twice as much."""
USUAL_WAIT_S = 30.0
"""A few workers may as well come back this often: every return is one more proof that the way is open."""
SHORTEST_WAIT = 0.75
"""Of the wait a worker asks for: requests that began together end apart."""


class Pace:
    """How many requests wait for an assignment, and what each is told."""

    def __init__(self, max_wait_s: float, draw: Callable[[], float] = random.random) -> None:
        """Args: draw: gives a number from [0, 1)."""
        self._max_wait_s = max_wait_s
        self._draw = draw
        self._waiting = 0
        self._sent_home = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """One request more waits while this is open."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    def wait_s(self, asked_s: float, now_s: float) -> float:
        """How long a request that asks to wait so long may wait, from `now_s` on."""
        wait_s = asked_s * (SHORTEST_WAIT + (1 - SHORTEST_WAIT) * self._draw())
        if self._fair_s() > USUAL_WAIT_S:
            wait_s -= (now_s + wait_s) % TOGETHER_S
        return max(wait_s, 0.0)

    def _fair_s(self) -> float:
        return self._waiting / RETURNS_AT_REST_PER_S

    def next_wait_s(self) -> int:
        """How long one of those who wait should wait the next time, in whole seconds.

        Drawn from a wide range, so that a crowd that came together is spread over all of it after one wait.
        """
        return int(min(max(USUAL_WAIT_S, self._fair_s() * (0.5 + self._draw())), self._max_wait_s))

    def send_home(self) -> None:
        """All who wait now are sent home together."""
        self._sent_home = max(self._sent_home, self._waiting)

    def come_back_s(self) -> int:
        """Whole seconds after which one of those who were sent home is to come back; 0 for all others."""
        return int(self._draw() * self._sent_home / RETURNS_PER_S)

    def advice(self) -> dict[str, str]:
        """The headers of an answer that has nothing to do in it."""
        come_back_s, next_wait_s = self.come_back_s(), self.next_wait_s()
        if come_back_s:
            return {"Retry-After": str(come_back_s)}
        return {"Next-Wait": str(next_wait_s)} if next_wait_s else {}
