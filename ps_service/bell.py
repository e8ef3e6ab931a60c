# SPDX-License-Identifier: Apache-2.0
"""Wakes requests that wait. A ring says "look again"; the truth is always in the records.

Listen first, then look, then wait: a ring between looking and waiting is not missed.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

EFFECTS = "effects"
DEADLINES = "deadlines"
VERSIONS = "versions"
PRESENCE = "presence"
HOUSEKEEPING = "housekeeping"
FELLOWS = "fellows"


def worker_topic(worker_id: str) -> str:
    return f"worker/{worker_id}"


def task_topic(task: str) -> str:
    return f"task/{task}"


def run_topic(run_id: str) -> str:
    return f"run/{run_id}"


class Listener(Protocol):
    """Who can be rung."""

    def set(self) -> object:
        """Take note of a ring, at once; several before the next look are one."""
        ...


class Bell:
    """Topics and who listens to them, within one process."""

    def __init__(self) -> None:
        self._listeners: defaultdict[str, set[Listener]] = defaultdict(set)

    @contextmanager
    def listen(self, topics: Iterable[str]) -> Iterator[asyncio.Event]:
        """An event that is set when one of these topics is rung."""
        rung = asyncio.Event()
        with self.ringing(rung, topics):
            yield rung

    @contextmanager
    def ringing(self, listener: Listener, topics: Iterable[str]) -> Iterator[None]:
        """While this is open, the listener is rung whenever one of these topics is."""
        topics = tuple(topics)
        for topic in topics:
            self._listeners[topic].add(listener)
        try:
            yield
        finally:
            for topic in topics:
                self._listeners[topic].discard(listener)
                if not self._listeners[topic]:
                    del self._listeners[topic]

    def ring(self, topics: Iterable[str]) -> None:
        for topic in topics:
            for listener in self._listeners.get(topic, ()):
                listener.set()

    def ring_all(self) -> None:
        self.ring(list(self._listeners))


async def wait_for_ring(rung: asyncio.Event, wait_s: float) -> bool:
    """Wait at most so long; say whether it rang, and be ready for the next ring."""
    try:
        async with asyncio.timeout(wait_s):
            await rung.wait()
    except TimeoutError:
        return False
    rung.clear()
    return True
