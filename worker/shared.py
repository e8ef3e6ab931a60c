# SPDX-License-Identifier: Apache-2.0
"""What the workers of one process share: thousands ask no more at a time than a few would.

A server that thousands ask for the same at once turns most of them away, and they come again and again.
"""

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field

from worker.global_state import Held

Turns = AbstractAsyncContextManager[object]
"""Entered for each request, and left while there is nothing to do but wait."""
AT_WILL: Turns = nullcontext()
"""Of a worker that is alone in its process."""
AT_A_TIME = 32
"""Half of the uploads that a server takes at once by default."""


def _turnstile() -> asyncio.Semaphore:
    return asyncio.Semaphore(AT_A_TIME)


@dataclass(frozen=True)
class Shared:
    """One for all workers of a process."""

    held: Held = field(default_factory=Held)
    """Global state that any of them holds."""
    coming: asyncio.Semaphore = field(default_factory=_turnstile)
    """So many ask to be known to the server at a time; who waits for an operator's approval does not ask."""
    moving: asyncio.Semaphore = field(default_factory=_turnstile)
    """So many fetch something or send an update at a time."""
