# SPDX-License-Identifier: Apache-2.0
"""What the server and the workers of a peer have used, moment by moment."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.peers.loopback import received_bytes
from benchmarks.peers.procfs import MarkedProcesses, Process, all_processes

LOOK_S = 0.1


class CpuTally:
    """CPU seconds of a changing set of processes, the ended ones included."""

    def __init__(self) -> None:
        self._alive: dict[tuple[int, int], Process] = {}
        self._of_the_lost_s = 0.0

    def add(self, alive: Sequence[Process]) -> float:
        """CPU seconds so far, given who is alive now.

        Who has gone is in the sum of a parent that is one of us and has waited; of the others, what was
        seen last is kept.
        """
        now = {process.name: process for process in alive}
        pids = {process.pid for process in alive}
        self._of_the_lost_s += sum(
            process.cpu_s
            for name, process in self._alive.items()
            if name not in now and process.parent not in pids
        )
        self._alive = now
        return self._of_the_lost_s + sum(process.cpu_s for process in alive)


@dataclass(frozen=True)
class Sample:
    """What had been used at a moment."""

    at_s: float
    """By the machine's monotonic clock."""
    lo_bytes: int
    server_cpu_s: float
    workers_cpu_s: float
    server_rss_bytes: int
    """Of all its processes; memory that they share counts in each."""


@dataclass(frozen=True)
class Used:
    """What was used from one moment to another."""

    lo_bytes: float
    server_cpu_s: float
    workers_cpu_s: float


class Meter:
    """Looks again and again while `run` does."""

    def __init__(self, server_mark: str, workers_mark: str) -> None:
        self.samples: list[Sample] = []
        self._server, self._workers = MarkedProcesses(server_mark), MarkedProcesses(workers_mark)
        self._server_cpu, self._workers_cpu = CpuTally(), CpuTally()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_S)

    def look(self) -> None:
        everybody = all_processes()
        server, workers = self._server.now(everybody), self._workers.now(everybody)
        self.samples.append(
            Sample(
                at_s=time.monotonic(),
                lo_bytes=received_bytes(),
                server_cpu_s=self._server_cpu.add(server),
                workers_cpu_s=self._workers_cpu.add(workers),
                server_rss_bytes=sum(process.rss_bytes for process in server),
            )
        )


def used(samples: Sequence[Sample], began_s: float, ended_s: float) -> Used:
    """What was used in between; between two samples it is taken to have grown evenly."""
    at_s = [sample.at_s for sample in samples]

    def growth(values: Sequence[float]) -> float:
        before, after = np.interp((began_s, ended_s), at_s, values)
        return float(after - before)

    return Used(
        lo_bytes=growth([sample.lo_bytes for sample in samples]),
        server_cpu_s=growth([sample.server_cpu_s for sample in samples]),
        workers_cpu_s=growth([sample.workers_cpu_s for sample in samples]),
    )
