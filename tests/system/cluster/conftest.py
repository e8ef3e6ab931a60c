# SPDX-License-Identifier: Apache-2.0
"""Several server processes on one PostgreSQL and one S3."""

import asyncio
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx
import pytest

from fed_sophia.operator_client import OperatorClient
from protocol.errors import FedSophiaError
from protocol.messages import JoinTokenRequest, Receipt, Role, RunSummary, parse
from tests.s3 import S3Server
from tests.system.cluster.balancer import Balancer
from tests.system.conftest import ServerProcess


@dataclass
class Cluster:
    """Servers that share their stores, behind a balancer."""

    servers: list[ServerProcess]
    balancer: Balancer
    database_url: str
    s3: S3Server

    @property
    def url(self) -> str:
        return self.balancer.url

    @property
    def operator_key(self) -> str:
        """Which the first server has made."""
        return (self.servers[0].data_dir / "operator.key").read_text().strip()

    def operator(self, of: ServerProcess | None = None) -> OperatorClient:
        return OperatorClient(of.url if of else self.url, self.operator_key)

    async def join_token(self, uses: int) -> str:
        async with self.operator(self.servers[0]) as operator:
            return (await operator.create_token(JoinTokenRequest(uses=uses, role=Role.TRAINER))).join_token

    async def run_ended(self, run_id: str, within_s: float = 120.0) -> RunSummary:
        """Wait for the end of a run, whoever tells of it."""
        async with self.operator() as operator, asyncio.timeout(within_s):
            while True:
                with suppress(FedSophiaError):
                    if (run := await operator.run(run_id)).status.ended:
                        return run
                await asyncio.sleep(0.1)

    async def all_there(self) -> None:
        """Start anew who may have been cut off while it was started."""
        for server in self.servers:
            await server.end(signal.SIGKILL)
            await server.start()

    async def receipt(self, assignment_id: str) -> Receipt:
        headers = {"Authorization": f"Bearer {self.operator_key}"}
        async with httpx.AsyncClient(base_url=self.servers[0].url, headers=headers) as client:
            answer = await client.get(f"/v1/assignments/{assignment_id}/update")
            return parse(Receipt, answer.raise_for_status().content)


class HeldServer(ServerProcess):
    """One that may be held in an aggregation (`held_server.py`)."""

    def command(self) -> list[str]:
        script = Path(__file__).with_name("held_server.py")
        return [sys.executable, "-P", str(script), str(self.port), str(self.data_dir)]


class StartsCluster(Protocol):
    """Starts servers that share stores of their own."""

    async def __call__(
        self,
        count: int,
        database_url: str | None = None,
        kind: type[ServerProcess] = ServerProcess,
        **environment: str,
    ) -> Cluster: ...


@pytest.fixture
async def start_cluster(
    tmp_path: Path, new_database: Callable[[], str], s3: S3Server
) -> AsyncIterator[StartsCluster]:
    """Starts so many servers on stores of their own; they are ended after the test."""
    async with AsyncExitStack() as stack:

        async def start(
            count: int,
            database_url: str | None = None,
            kind: type[ServerProcess] = ServerProcess,
            **more: str,
        ) -> Cluster:
            database_url = database_url or new_database()
            environment = {
                **os.environ,
                **s3.environment,
                **more,
                "FED_SOPHIA_DATABASE_URL": database_url,
                "FED_SOPHIA_BLOBS_URL": s3.url(secrets.token_hex(6)),
            }
            servers = []
            for number in range(count):
                folder = tmp_path / f"cluster-{secrets.token_hex(2)}-{number}"
                server = kind(folder / "server", environment)
                server.data_dir.mkdir(parents=True)
                await server.start()
                stack.push_async_callback(server.end, signal.SIGKILL)
                servers.append(server)
            balancer = Balancer([server.port for server in servers])
            await stack.enter_async_context(balancer.listening())
            return Cluster(servers, balancer, database_url, s3)

        yield start
