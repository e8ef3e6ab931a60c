# SPDX-License-Identifier: Apache-2.0
"""Processes of this program that live and die with the one that started them.

The law of this file: whatever happens here, no child outlives us. Each holds the read end of a pipe as
its standard input and stops at its end (`parent_watch`), so that `kill -9` leaves none behind either;
`stop` asks first, waits a bounded time, and kills by process id as a last resort.
"""

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fed_sophia.output import one_line
from protocol.errors import Internal

_POLL_S = 0.02
_GRACE_S = 8.0
_LAST_LINES = 5


@dataclass(frozen=True)
class Child:
    """One process, and the files that hold what it says."""

    name: str
    process: asyncio.subprocess.Process
    stdout: Path
    stderr: Path

    def peak_rss_mb(self) -> float | None:
        """Most memory it has held so far, in 10^6 bytes; None where the kernel does not tell."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        except OSError:
            return None
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) * 1024 / 1e6, 1)
        return None


class Children:
    """The processes of one demo, in the order they were started."""

    def __init__(self, log_dir: Path) -> None:
        self._log_dir = log_dir
        self._children: list[Child] = []

    async def start(
        self, name: str, arguments: Sequence[str], secrets: Mapping[str, str] | None = None
    ) -> Child:
        """Start `fed-sophia` with these arguments; secrets travel in its environment, never in `ps`."""
        self._log_dir.mkdir(parents=True, exist_ok=True)
        stdout, stderr = self._log_dir / f"{name}.stdout", self._log_dir / f"{name}.stderr"
        # -P: a stranger's worker.py in the current folder must not stand in for ours
        command = [sys.executable, "-P", "-m", "fed_sophia", *arguments, "--json", "--exit-with-parent"]
        with stdout.open("wb") as out, stderr.open("wb") as err:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=out,
                stderr=err,
                env=_environment() | dict(secrets or {}),
                start_new_session=True,  # Ctrl-C reaches us alone; we stop the children in order
            )
        child = Child(name, process, stdout, stderr)
        self._children.append(child)
        return child

    async def first_line(self, child: Child, timeout_s: float) -> dict[str, object]:
        """Wait for the first JSON line a child prints.

        Raises:
            Internal: it ended first, or took longer than the timeout.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    line, newline, _ = child.stdout.read_text(encoding="utf-8").partition("\n")
                    if newline:
                        fields: dict[str, object] = json.loads(line)
                        if "error" in fields:
                            raise Internal(f"{child.name}: {fields.get('detail')}")
                        return fields
                    self.check_alive()
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise Internal(f"{child.name} was not ready after {timeout_s:.0f} s") from None

    def check_alive(self) -> None:
        """Raises: Internal: a child has ended; with the last lines it wrote."""
        for child in self._children:
            if child.process.returncode is not None:
                code = child.process.returncode
                raise Internal(f"{child.name} ended early with exit code {code}: {_last_words(child)}")

    async def watch(self) -> None:
        """Wait until a child ends; never return otherwise.

        Raises:
            Internal: a child has ended.
        """
        while True:
            self.check_alive()
            await asyncio.sleep(0.2)

    async def stop(self) -> None:
        """End every child, the last started first; return when all are gone."""
        for child in reversed(self._children):
            with suppress(ProcessLookupError):
                child.process.terminate()
        ends = [asyncio.ensure_future(child.process.wait()) for child in self._children]
        if not ends:
            return
        _, alive = await asyncio.wait(ends, timeout=_GRACE_S)
        if alive:
            for child in self._children:
                if child.process.returncode is None:
                    with suppress(ProcessLookupError):
                        child.process.kill()
            await asyncio.wait(ends)
        self._children.clear()


def _last_words(child: Child) -> str:
    """What a child said last, on one line: its own summary of the error if it gave one."""
    lines = child.stderr.read_text(encoding="utf-8", errors="replace").splitlines()
    said = child.stdout.read_text(encoding="utf-8", errors="replace").splitlines()
    with suppress(ValueError, TypeError, KeyError, IndexError):
        summary = json.loads(said[-1])
        return f"{summary['detail']} ({summary['error']})"
    return one_line(" | ".join(lines[-_LAST_LINES:] or said[-1:])) or "it said nothing"


def _environment() -> dict[str, str]:
    """Ours, without the settings of another server or worker that may be in it."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("FED_SOPHIA_") or name == "FED_SOPHIA_DATA_DIR"
    }
