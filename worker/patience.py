# SPDX-License-Identifier: Apache-2.0
"""Repeats what may be repeated, with the pauses that `retry` decides on."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from protocol.errors import FedSophiaError
from worker.events import Reconnecting, Report
from worker.retry import backoff, wait_before_retry

HEARTBEAT_S = 20.0
TRANSFERS_AGAIN = 3

T = TypeVar("T")


class Stopped(Exception):
    """Work was given up because its worker is to stop."""


@dataclass(frozen=True)
class Pauses:
    """How a worker waits and draws lots: the seam through which a test does neither."""

    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    jitter: Callable[[], float] = random.random
    clock_s: Callable[[], float] = time.monotonic
    heartbeat_s: float = HEARTBEAT_S


REAL_PAUSES = Pauses()


async def persistently(action: Callable[[], Awaitable[T]], worker: str, report: Report, pauses: Pauses) -> T:
    """Give the action's result, repeating it for as long as its errors may be tried again."""
    attempt = 0
    while True:
        try:
            return await action()
        except FedSophiaError as error:
            wait_s = wait_before_retry(error, attempt, pauses.jitter())
            if wait_s is None:
                raise
            report(Reconnecting(error.detail, wait_s, worker=worker))
        await pauses.sleep(wait_s)
        attempt += 1


async def despite_damage(
    transfer: Callable[[], Awaitable[T]],
    damage: tuple[type[FedSophiaError], ...],
    worker: str,
    report: Report,
    pauses: Pauses,
) -> T:
    """Give the transfer's result, repeating it three times at most where bytes came to harm on the way."""
    for attempt in range(TRANSFERS_AGAIN):
        try:
            return await transfer()
        except damage as error:
            wait_s = backoff(attempt, pauses.jitter())
            report(Reconnecting(error.detail, wait_s, worker=worker))
        await pauses.sleep(wait_s)
    return await transfer()
