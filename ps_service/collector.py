# SPDX-License-Identifier: Apache-2.0
"""When Python looks for garbage in cycles: among new objects always, among all others once an hour.

What 5,000 waiting requests consist of is a million objects. To go through them takes about a second, in which
nobody is answered, and the usual thresholds do it whenever a crowd moves. Nearly all garbage here is in no
cycle and goes at once; what the first look misses waits for the hour.
"""

import asyncio
import gc
from typing import NoReturn

NEW_OBJECTS = 5_000
"""So many more objects than before, and those are looked through: hundredths of a second."""
NEVER = 2**30
EVERY_S = 3600.0


async def collect_seldom() -> NoReturn:
    """Keep the rhythm, until cancelled; then it is as it was."""
    usual = gc.get_threshold()
    gc.set_threshold(NEW_OBJECTS, NEVER, NEVER)
    try:
        while True:
            await asyncio.sleep(EVERY_S)
            gc.collect()
    finally:
        gc.set_threshold(*usual)
