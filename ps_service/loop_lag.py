# SPDX-License-Identifier: Apache-2.0
"""How late the event loop comes to what is due: what every answer waits for before it is even begun.

Something is due every `EVERY_S`. It comes late where a call of ours holds the loop, and also where the
machine's cores are busy with other processes or this one's threads: the share of late looks is the share of
the time in which whoever asks waits so long.
"""

import asyncio
from collections.abc import Callable
from typing import NoReturn

EVERY_S = 0.1


async def watch_lag(observe: Callable[[float], None]) -> NoReturn:
    """Tell, again and again until cancelled, how many seconds late the loop came."""
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + EVERY_S
        await asyncio.sleep(EVERY_S)
        observe(max(0.0, loop.time() - due_s))
