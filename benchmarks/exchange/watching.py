# SPDX-License-Identifier: Apache-2.0
"""The memory of a process, from /proc: Linux only."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

LOOK_S = 0.01


@dataclass
class Peak:
    """The most memory of its own that a process was seen to have; mapped files are not counted."""

    own_bytes: int = 0


def own_bytes(pid: int) -> int:
    """Anonymous memory that is resident now."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


@asynccontextmanager
async def peak_of(pid: int) -> AsyncIterator[Peak]:
    """Look at a process again and again while this is open."""
    peak = Peak()

    async def look() -> None:
        while True:
            peak.own_bytes = max(peak.own_bytes, own_bytes(pid))
            await asyncio.sleep(LOOK_S)

    looking = asyncio.create_task(look())
    try:
        yield peak
    finally:
        looking.cancel()
        await asyncio.wait([looking])
