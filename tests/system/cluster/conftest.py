# SPDX-License-Identifier: Apache-2.0
"""Starts several server processes on one PostgreSQL and one S3, and says how a run on one server ends."""

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.s3 import S3Server
from tests.system.cluster.balancer import Balancer
from tests.system.cluster.cluster import Cluster, StartsCluster
from tests.system.cluster.federation import WORKERS, federation, undisturbed
from tests.system.conftest import ServerProcess


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The digests with which the same run ends on one server with SQLite and files."""
    folder = tmp_path_factory.mktemp("alone")

    async def alone() -> dict[str, str]:
        server = ServerProcess(folder / "server")
        server.data_dir.mkdir()
        await server.start()
        try:
            async with server.operator() as operator:
                token = await server.join_token(uses=WORKERS)
                ended, _ = await federation(
                    server.url, operator, token, folder, undisturbed, server.run_ended
                )
        finally:
            await server.end(signal.SIGKILL)
        return dict(ended.tensors)

    return asyncio.run(alone())


async def started(servers: list[ServerProcess], stack: AsyncExitStack) -> None:
    """Start them together; they are ended with the stack."""
    async with asyncio.TaskGroup() as group:
        for server in servers:
            group.create_task(server.start())
    for server in servers:
        stack.push_async_callback(server.end, signal.SIGKILL)


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
            prefix: str | None = None,
            **more: str,
        ) -> Cluster:
            database_url = database_url or new_database()
            prefix = prefix or secrets.token_hex(6)
            environment = {
                **os.environ,
                **s3.environment,
                **more,
                "FED_SOPHIA_DATABASE_URL": database_url,
                "FED_SOPHIA_BLOBS_URL": s3.url(prefix),
            }
            servers = []
            for number in range(count):
                folder = tmp_path / f"cluster-{secrets.token_hex(2)}-{number}"
                server = kind(folder / "server", environment)
                server.data_dir.mkdir(parents=True)
                servers.append(server)
            await started(servers[:1], stack)  # it makes the first credentials
            await started(servers[1:], stack)
            balancer = Balancer([server.port for server in servers])
            await stack.enter_async_context(balancer.listening())
            return Cluster(servers, balancer, database_url, s3, prefix, environment)

        yield start
