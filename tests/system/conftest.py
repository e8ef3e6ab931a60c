# SPDX-License-Identifier: Apache-2.0
"""A parameter server in a process of its own, for tests that kill it."""

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fed_sophia.operator_client import OperatorClient
from protocol.messages import JoinTokenRequest, Role, RunSummary

READY_S = 60.0


class ServerProcess:
    """`fed-sophia serve` on one data directory and one port, started and ended as often as a test likes."""

    prefix: tuple[str, ...] = ()
    """The command that starts the command, if any."""
    options: tuple[str, ...] = ()

    def __init__(self, data_dir: Path, environment: Mapping[str, str] | None = None) -> None:
        self.data_dir = data_dir
        self._environment = environment
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with (self.data_dir.parent / "server.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.command(),
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None
        async with asyncio.timeout(READY_S):
            line = await self._process.stdout.readline()
        assert json.loads(line)["url"] == self.url

    def command(self) -> list[str]:
        own = ("--port", str(self.port), "--data-dir", str(self.data_dir), *self.options)
        return [*self.prefix, sys.executable, "-P", "-m", "fed_sophia", "serve", "--json", *own]

    def send(self, number: signal.Signals) -> None:
        """Send a signal that does not end it."""
        assert self._process is not None
        self._process.send_signal(number)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def end(self, number: signal.Signals) -> int:
        """Send a signal, wait for the end, give the exit status."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(number)
        async with asyncio.timeout(READY_S):
            await self._process.communicate()
        assert self._process.returncode is not None
        return self._process.returncode

    async def kill(self) -> None:
        """As a power cut would end it: no clean-up, no last word."""
        assert await self.end(signal.SIGKILL) == -signal.SIGKILL

    def operator(self) -> OperatorClient:
        return OperatorClient(self.url, (self.data_dir / "operator.key").read_text().strip())

    async def join_token(self, uses: int = 1, role: Role = Role.TRAINER) -> str:
        async with self.operator() as operator:
            return (await operator.create_token(JoinTokenRequest(uses=uses, role=role))).join_token

    async def run_ended(self, run_id: str, within_s: float = 120.0) -> RunSummary:
        """Wait for the end of a run."""
        async with self.operator() as operator, asyncio.timeout(within_s):
            while not (run := await operator.run(run_id)).status.ended:
                await asyncio.sleep(0.05)
            return run


def free_port() -> int:
    """A port of this machine's loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def running(process: ServerProcess) -> AsyncIterator[ServerProcess]:
    """A running server, ended afterwards whatever state it was left in."""
    process.data_dir.mkdir(parents=True, exist_ok=True)
    await process.start()
    try:
        yield process
    finally:
        await process.end(signal.SIGKILL)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerProcess]:
    async with running(ServerProcess(tmp_path / "server")) as process:
        yield process
