# SPDX-License-Identifier: Apache-2.0
"""Processes to be killed and started again, many times.

Each is forked from one that has imported everything: a start takes a tenth of a second where PyTorch alone
takes three. It is a process like any other: its own memory, files and connections, and SIGKILL leaves it no
last word. It ends with the process of the tests, however that ends.
"""

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path

_ENDS_WITHIN_S = 60.0
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.system.crash.before_forking"])


class Mortal:
    """One process at a time, always with the same name and the same life."""

    def __init__(self, name: str, live: Callable[[], None], log: Path) -> None:
        """Args: live: what the process does, from its beginning to its end; log: what it prints."""
        self.name = name
        self.killed = 0
        self._live = live
        self._log = log
        self._process: ForkServerProcess | None = None

    @property
    def started(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        assert self._process is None, f"{self.name} is there already"
        self._process = _FORKS.Process(
            target=_begin, args=(self._live, self._log), name=self.name, daemon=True
        )
        self._process.start()

    async def end(self, number: signal.Signals) -> None:
        """Send a signal and wait for the end: SIGTERM ends it tidily, unless it has just died."""
        assert self._process is not None and self._process.pid is not None
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, number)
        await asyncio.to_thread(self._process.join, _ENDS_WITHIN_S)
        self._bury({-signal.SIGKILL} if number is signal.SIGKILL else {-signal.SIGKILL, 0})

    async def kill_and_restart(self) -> None:
        await self.end(signal.SIGKILL)
        self.start()

    def restart_if_dead(self) -> None:
        """Let it live again if it has died by SIGKILL; any other end is an error."""
        assert self._process is not None
        if self._process.exitcode is not None:
            self._bury({-signal.SIGKILL})
            self.start()

    def abandon(self) -> None:
        """Kill whatever is there; for the end of a test."""
        if self._process is not None:
            self._process.kill()
            self._process.join(_ENDS_WITHIN_S)
            self._process.close()
            self._process = None

    def _bury(self, expected: set[int]) -> None:
        assert self._process is not None
        ended = self._process.exitcode
        if ended not in expected:
            raise AssertionError(f"{self.name} ended with {ended}, expected {expected}:\n{self.last_words()}")
        self.killed += ended == -signal.SIGKILL
        self._process.close()
        self._process = None

    def last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        return "\n".join(lines[-30:])


def _begin(live: Callable[[], None], log: Path) -> None:
    """The first function of a new process."""
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    live()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
