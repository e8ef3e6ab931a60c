# SPDX-License-Identifier: Apache-2.0
"""Several server processes on one PostgreSQL and one S3, as a test sees them."""

import asyncio
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx

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
    prefix: str
    """Of its objects."""
    environment: dict[str, str]
    """Of each server."""

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

    async def start_anew(self) -> None:
        """Who is asked from here on tells what is in the stores, and nothing that was in memory."""
        await self.servers[0].end(signal.SIGKILL)
        await self.servers[0].start()

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
        prefix: str | None = None,
        **environment: str,
    ) -> Cluster: ...
