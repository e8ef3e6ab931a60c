# SPDX-License-Identifier: Apache-2.0
"""What all peers have in common: what is asked of them, where they live, and how long they may take."""

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.processes import PeerProcesses
from benchmarks.peers.workload import SMALLEST_MB
from protocol.errors import InvalidUsage

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / "build" / "peers"


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    mb: float
    """Of float32, in 10^6 bytes."""
    workers: int
    rounds: int

    def check(self) -> None:
        """Raises: InvalidUsage: nothing can be measured with these numbers."""
        if self.mb < SMALLEST_MB or self.workers < 1 or self.rounds < 1:
            raise InvalidUsage(
                f"at least {SMALLEST_MB} MB, one worker and one round are needed, "
                f"not {self.mb:g} MB, {self.workers} and {self.rounds}"
            )

    def time_limit_s(self) -> float:
        """Three times and more what any peer has taken on two busy cores."""
        start_s = 120 + 10 * self.workers
        round_s = 30 + 12 * self.workers + 0.2 * self.mb * self.workers
        return start_s + self.rounds * round_s


@dataclass(frozen=True)
class Place:
    """Where a peer is installed, and where it may write."""

    environment: Path
    """Its virtual environment."""
    folder: Path

    @property
    def bin(self) -> Path:
        return self.environment / "bin"

    @property
    def report(self) -> Path:
        """What its server writes in the end."""
        return self.folder / "report.json"

    def variables(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """The environment of its processes: ours, and none of our settings or of the user's files."""
        kept = {name: value for name, value in inherited.items() if not name.startswith("FED_SOPHIA_")}
        return kept | {
            "PATH": f"{self.bin}:{inherited.get('PATH', os.defpath)}",
            "HOME": str(self.folder),
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }


@dataclass(frozen=True)
class Peer:
    """A framework that can be measured."""

    name: str
    environment: Path
    """Its virtual environment."""
    begin: Callable[[Plan, Place, PeerProcesses], Awaitable[None]]
    """Start the server and the workers, and have the job run; it writes `Place.report` when it has."""
    settings: Callable[[Place], Mapping[str, str]]
    """What it reads from its environment."""

    def check_installed(self) -> None:
        """Raises: InvalidUsage: it is not installed."""
        if not (self.environment / ".installed").exists():
            raise InvalidUsage(
                f"{self.name} is not installed in {self.environment}: run `make bench-peers` first"
            )

    def place(self, folder: Path) -> Place:
        """Where it is installed, and `folder` to write to.

        Raises:
            InvalidUsage: it is not installed.
        """
        self.check_installed()
        return Place(self.environment, folder)
