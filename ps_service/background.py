# SPDX-License-Identifier: Apache-2.0
"""What a server does unasked: closes rounds at their deadlines, performs effects, looks who is there.

Each of these is a watch: work that is done now, and again whenever its topic rings or the time it asked for
has passed. What it works from is in the records: nothing is lost by trying again, everything by giving up.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from ps_service.bell import DEADLINES, EFFECTS, FELLOWS, HOUSEKEEPING, PRESENCE, Bell, wait_for_ring
from ps_service.deadlines import RETRY_S, tick
from ps_service.effects import perform_effects
from ps_service.loop_lag import watch_lag
from ps_service.service import Service
from ps_service.troubles import Troubles

log = logging.getLogger("fed_sophia.rounds")


@asynccontextmanager
async def background(service: Service) -> AsyncIterator[None]:
    """While this is open, the server's watches are kept."""
    troubles = Troubles(log)

    async def performing() -> float:
        done = await perform_effects(
            service.runner, troubles, service.settings.quarantine_after, service.note_quarantine
        )
        return 60.0 if done else RETRY_S

    watches: dict[str, Callable[[], Awaitable[float]]] = {
        DEADLINES: partial(tick, service.runner, troubles),
        EFFECTS: performing,
        PRESENCE: service.presence.look,
        HOUSEKEEPING: service.housekeeping.look,
        FELLOWS: service.fellows.look,
    }
    tasks = [
        asyncio.create_task(_watch(service.bell, topic, work, troubles)) for topic, work in watches.items()
    ]
    tasks.append(asyncio.create_task(watch_lag(service.meters.loop_lag_seconds.observe)))
    tasks.append(asyncio.create_task(service.stores.records.hear(service.bell.ring, service.bell.ring_all)))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await service.fellows.leave()
        await service.runner.leases.close()


async def _watch(bell: Bell, topic: str, work: Callable[[], Awaitable[float]], troubles: Troubles) -> None:
    with bell.listen([topic]) as rung:
        while True:
            try:
                wait_s = await work()
                troubles.worked(topic)
            except Exception as error:
                troubles.failed(topic, error)
                wait_s = RETRY_S
            await wait_for_ring(rung, wait_s)
