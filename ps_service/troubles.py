# SPDX-License-Identifier: Apache-2.0
"""Says what goes wrong again and again: when it begins or changes, then rarely, and when it is over."""

import logging
import time
from collections.abc import Callable

from protocol.errors import FedSophiaError, StorageNotWritable, StorageUnavailable

REMIND_S = 600.0


class Troubles:
    """What is failing at the moment, each thing by its name."""

    def __init__(self, log: logging.Logger, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock_s = clock_s
        self._said: dict[str, tuple[str, float]] = {}

    def failed(self, what: str, error: Exception) -> None:
        """`what` has failed and is tried again; only a failure that nobody foresaw shows where it arose."""
        kind = error.detail if isinstance(error, FedSophiaError) else type(error).__name__
        said, said_s = self._said.get(what, ("", 0.0))
        if kind == said and self._clock_s() - said_s < REMIND_S:
            return
        self._said[what] = kind, self._clock_s()
        foreseen = isinstance(error, StorageNotWritable | StorageUnavailable)
        self._log.error("%s: %s; it is tried again", what, kind, exc_info=None if foreseen else error)

    def worked(self, what: str) -> None:
        if self._said.pop(what, None) is not None:
            self._log.warning("%s: works again", what)
