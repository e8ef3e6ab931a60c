# SPDX-License-Identifier: Apache-2.0
"""A call that holds the event loop is seen in the metric of its lag."""

import asyncio
import time

from ps_service.loop_lag import EVERY_S, watch_lag


def hold_the_loop():
    """What no server may do."""
    time.sleep(3 * EVERY_S)


async def test_a_loop_that_was_held_came_so_late():
    lags: asyncio.Queue[float] = asyncio.Queue()
    watching = asyncio.create_task(watch_lag(lags.put_nowait))
    await asyncio.sleep(0)
    hold_the_loop()
    assert await lags.get() > 1.5 * EVERY_S
    assert await lags.get() >= 0
    watching.cancel()
    await asyncio.wait([watching])


async def test_a_server_counts_it(server):
    for _ in range(3):  # the first may find the watch not yet begun
        await asyncio.sleep(0)
        hold_the_loop()
    seen, late = 0.0, 0.0
    async with asyncio.timeout(10):
        while not seen:
            await asyncio.sleep(EVERY_S)
            seen, late = await counts(server)
    assert late >= 1


async def counts(server):
    """(looks, looks that found the loop 0.1 s late or later)."""
    lines = dict(
        line.rsplit(" ", 1)
        for line in (await server.operator.get("/metrics")).text.splitlines()
        if line.startswith("fed_sophia_loop_lag_seconds")
    )
    seen = float(lines["fed_sophia_loop_lag_seconds_count"])
    return seen, seen - float(lines['fed_sophia_loop_lag_seconds_bucket{le="0.1"}'])
