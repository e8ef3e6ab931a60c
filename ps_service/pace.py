# SPDX-License-Identifier: Apache-2.0
"""When idle workers come back: spread, so that those who were sent home together do not return together."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

RETURNS_PER_S = 200
"""So many idle workers are asked to come back each second after a stop."""
SHORTEST_WAIT = 0.75
"""Of the wait a worker asks for: requests that began together end apart."""


class Pace:
    """How many requests wait for an assignment, and what each is told."""

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        """Args: draw: gives a number from [0, 1)."""
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

    def wait_s(self, asked_s: float) -> float:
        """How long a request that asks to wait so long may wait."""
        return asked_s * (SHORTEST_WAIT + (1 - SHORTEST_WAIT) * self._draw())

    def send_home(self) -> None:
        """All who wait now are sent home together."""
        self._sent_home = max(self._sent_home, self._waiting)

    def come_back_s(self) -> int:
        """Whole seconds after which one of those who were sent home is to come back; 0 for all others."""
        return int(self._draw() * self._sent_home / RETURNS_PER_S)
