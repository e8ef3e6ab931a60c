# SPDX-License-Identifier: Apache-2.0
"""Server processes that share their stores, and the one address of them all."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.cluster.stores import Stores
from fed_sophia.operator_client import OperatorClient
from fed_sophia.options import read_secret
from fed_sophia.processes import Child, Children
from tests.system.cluster.balancer import Balancer

READY_S = 60.0


@dataclass(frozen=True)
class Replicas:
    """Servers that are there now."""

    pids: tuple[int, ...]
    urls: tuple[str, ...]
    operator_key: str
    children: Children

    async def metric(self, name: str) -> tuple[float, ...]:
        """The sample of this name that each server gives."""
        found = []
        for url in self.urls:
            async with OperatorClient(url, self.operator_key) as operator:
                families = text_string_to_metric_families(await operator.metrics())
            samples = (sample for family in families for sample in family.samples)
            found.append(next(sample.value for sample in samples if sample.name == name))
        return tuple(found)


@asynccontextmanager
async def replicas(count: int, folder: Path, stores: Stores) -> AsyncIterator[Replicas]:
    """So many servers, gone when the block is left; data directories are those of earlier ones in `folder`.

    Raises:
        Internal: one of them has not come up.
    """
    children = Children(folder / "logs")
    try:
        # the first finds an empty database, makes what is to be in it, and the operator's key
        first = [await _start(children, folder, stores, 0)]
        more = await asyncio.gather(*(_start(children, folder, stores, number) for number in range(1, count)))
        servers = [*first, *more]
        yield Replicas(
            pids=tuple(server.process.pid for server, _ in servers),
            urls=tuple(url for _, url in servers),
            operator_key=read_secret(folder / "server-0" / "operator.key", "operator key"),
            children=children,
        )
    finally:
        await children.stop()


async def _start(children: Children, folder: Path, stores: Stores, number: int) -> tuple[Child, str]:
    name = f"server-{number}"
    data_dir = str(folder / name)
    arguments = ["serve", "--host", "127.0.0.1", "--port", "0", "--data-dir", data_dir]
    server = await children.start(name, arguments, stores.environment)
    return server, str((await children.first_line(server, READY_S))["url"])


@asynccontextmanager
async def reached_through(balancer: Balancer, servers: Replicas) -> AsyncIterator[OperatorClient]:
    """While this is open, new connections go to these; gives an operator who comes that way, too."""
    balancer.ports[:] = [urlsplit(url).port or 0 for url in servers.urls]
    try:
        async with OperatorClient(balancer.url, servers.operator_key) as client:
            yield client
    finally:
        balancer.ports.clear()
