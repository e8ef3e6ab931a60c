# SPDX-License-Identifier: Apache-2.0
"""The processes of one peer: started with a mark, watched, and ended by process id.

The law of this file: only processes that bear our mark are ended, and when `stop` returns there are none.
"""

import asyncio
import os
import secrets
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.procfs import MARK, MarkedProcesses
from fed_sophia.output import one_line
from protocol.errors import Internal

GRACE_S = 8.0
LOOK_S = 0.1
LAST_LINES = 5
LAST_BYTES = 16_384


@dataclass(frozen=True)
class Started:
    """A process that is to live as long as the measurement."""

    name: str
    process: asyncio.subprocess.Process
    log: Path


class PeerProcesses:
    """The processes of a peer's server, of its workers, and the commands an operator would type."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        token = secrets.token_hex(8)
        self.server_mark, self.workers_mark = f"{token}-server", f"{token}-workers"
        self._command_mark = f"{token}-command"
        self._folder = folder
        self._environment = dict(environment)
        self._processes: list[asyncio.subprocess.Process] = []
        self._lasting: list[Started] = []

    async def start_server(self, name: str, command: Sequence[str]) -> Path:
        """Start a process of the server; give the file that holds what it says."""
        return await self._start_lasting(name, command, self.server_mark)

    async def start_worker(self, name: str, command: Sequence[str]) -> Path:
        """Start a process of a worker; give the file that holds what it says."""
        return await self._start_lasting(name, command, self.workers_mark)

    async def command(self, name: str, command: Sequence[str], within_s: float = 180.0) -> None:
        """Run a command to its end.

        Raises:
            Internal: it fails, or takes longer.
        """
        process, log = await self._start(name, command, self._command_mark)
        try:
            async with asyncio.timeout(within_s):
                code = await process.wait()
        except TimeoutError:
            raise Internal(f"{name} took longer than {within_s:.0f} s: {last_words([log])}") from None
        if code != 0:
            raise Internal(f"{name} ended with exit code {code}: {last_words([log])}")

    def check_alive(self) -> None:
        """Raises: Internal: a process has ended that should not have; with the last lines it wrote."""
        for each in self._lasting:
            code = each.process.returncode
            if code is not None:
                raise Internal(f"{each.name} ended early with exit code {code}: {last_words([each.log])}")

    def logs(self) -> list[Path]:
        """What the lasting processes have said, the server's first."""
        return [each.log for each in self._lasting]

    async def stop(self) -> None:
        """End all processes, asking first; return when they are gone."""
        marked = [MarkedProcesses(mark) for mark in (self._command_mark, self.workers_mark, self.server_mark)]
        for number in (signal.SIGTERM, signal.SIGKILL):
            told: set[int] = set()
            for _ in range(round(GRACE_S / LOOK_S)):
                living = {process.pid for each in marked for process in each.now() if process.state != "Z"}
                if not living:
                    break
                for pid in living - told:  # new ones may have been started since
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)
                told |= living
                await asyncio.sleep(LOOK_S)
        for process in self._processes:
            await process.wait()

    async def _start_lasting(self, name: str, command: Sequence[str], mark: str) -> Path:
        process, log = await self._start(name, command, mark)
        self._lasting.append(Started(name, process, log))
        return log

    async def _start(
        self, name: str, command: Sequence[str], mark: str
    ) -> tuple[asyncio.subprocess.Process, Path]:
        log = self._folder / f"{name}.log"
        with log.open("ab") as out:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=asyncio.subprocess.STDOUT,
                cwd=self._folder,
                env=self._environment | {MARK: mark},
                start_new_session=True,  # Ctrl-C reaches us alone; we end them in order
            )
        self._processes.append(process)
        return process, log


def last_words(logs: Sequence[Path]) -> str:
    """The last lines of these files, on one line."""
    lines: list[str] = []
    for log in logs:
        with suppress(OSError), log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - LAST_BYTES))
            said = file.read().decode("utf-8", "replace").splitlines()
            lines += [line for line in said if line.strip()][-LAST_LINES:]
    return one_line(" | ".join(lines)) or "it said nothing"
