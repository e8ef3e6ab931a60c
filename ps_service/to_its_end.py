# SPDX-License-Identifier: Apache-2.0
"""Work in a thread that a cancellation does not leave half done."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def to_its_end(action: Callable[[], T]) -> T:
    """Do something in a thread that must not be left half done; a cancellation waits for it."""
    acting = asyncio.ensure_future(asyncio.to_thread(action))
    try:
        return await asyncio.shield(acting)
    except asyncio.CancelledError:
        await asyncio.wait([acting])
        acting.exception()  # nobody is left to hear of it
        raise
