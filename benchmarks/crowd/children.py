# SPDX-License-Identifier: Apache-2.0
"""The processes that hold the crowd, as the benchmark speaks to them."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import pairwise

from protocol.errors import Internal

MOST_LINE_BYTES = 64 * 1024 * 1024
GRACE_S = 10.0


class CrowdProcesses:
    """The crowd, spread over processes that each hold a part of it."""

    def __init__(self, processes: Sequence[asyncio.subprocess.Process]) -> None:
        self._processes = processes

    async def heard(self, event: str, within_s: float) -> list[dict[str, object]]:
        """What every process says of this event, which is what each says next.

        Raises:
            Internal: one has ended, or says something else, or nothing in time.
        """
        said = []
        try:
            async with asyncio.timeout(within_s):
                for process in self._processes:
                    assert process.stdout is not None
                    line = await process.stdout.readline()
                    fields = json.loads(line) if line else {}
                    if fields.get("event") != event:
                        raise Internal(f"a process of the crowd said {fields} instead of {event}")
                    said.append(fields)
        except TimeoutError:
            raise Internal(f"the crowd has not {event} within {within_s:.0f} s") from None
        return said

    async def tell(self, command: str, answer: str, within_s: float = 60.0) -> list[dict[str, object]]:
        """Send a command to every process; give what each answers."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{command}\n".encode())
        return await self.heard(answer, within_s)

    async def totals(self) -> dict[str, int]:
        """Over all processes: requests for an assignment, failures, assignments that came."""
        said = await self.tell("count", "counted")
        return {
            name: sum(int(str(each[name])) for each in said) for name in ("polls", "failures", "assigned")
        }

    async def failures(self) -> list[object]:
        """What went wrong, and how often, process by process."""
        return [each["failures"] for each in await self.tell("failures", "failures")]

    async def assigned(self) -> list[tuple[str, int, float]]:
        """(run, round, UTC in ms) of every assignment that came."""
        said = await self.tell("assigned", "assigned")
        return [tuple(row) for each in said for row in each["assigned"]]  # type: ignore[attr-defined]


@asynccontextmanager
async def crowd_processes(
    url: str, join_token: str, workers: int, processes: int, training_s: float
) -> AsyncIterator[CrowdProcesses]:
    """Processes that hold so many workers between them, and are all gone when the block is left."""
    cuts = [number * workers // processes for number in range(processes + 1)]
    started: list[asyncio.subprocess.Process] = []
    try:
        for first, last in pairwise(cuts):
            command = [sys.executable, "-m", "benchmarks.crowd.process", url, str(first), str(last - first)]
            started.append(
                await asyncio.create_subprocess_exec(
                    *command,
                    str(training_s),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    env=os.environ | {"CROWD_JOIN_TOKEN": join_token},
                    limit=MOST_LINE_BYTES,
                    start_new_session=True,
                )
            )
        yield CrowdProcesses(started)
    finally:
        for process in started:
            await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(OSError):
        assert process.stdin is not None
        process.stdin.close()
    try:
        async with asyncio.timeout(GRACE_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
