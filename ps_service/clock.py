# SPDX-License-Identifier: Apache-2.0
"""Time as an argument: the server asks a `Clock`, never the system."""

import time
from typing import Protocol


class Clock(Protocol):
    """Gives the time."""

    def now_ms(self) -> int:
        """UTC in integer milliseconds."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000
