# SPDX-License-Identifier: Apache-2.0
"""Stands before several servers as a load balancer does: each connection goes to one that accepts it."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

CHUNK_BYTES = 64 * 1024


class Balancer:
    """Forwards connections of one port to those of the servers."""

    def __init__(self, ports: Sequence[int], seed: int = 0) -> None:
        self.ports = list(ports)
        self.url = ""
        self.carried_bytes = 0
        """Both ways."""
        self._random = random.Random(seed)
        self._connections: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Balancer"]:
        server = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in list(self._connections):
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            for port in self._random.sample(self.ports, len(self.ports)):
                with suppress(OSError):
                    to_server = await asyncio.open_connection("127.0.0.1", port)
                    await self._both_ways(reader, writer, *to_server)
                    return
        except asyncio.CancelledError:
            pass  # the end of the test
        finally:
            self._connections.discard(task)
            writer.close()

    async def _both_ways(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        from_server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        """Until either side ends: a server that dies takes its connections with it."""
        ways = [
            asyncio.create_task(self._copy(reader, to_server)),
            asyncio.create_task(self._copy(from_server, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            to_server.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                self.carried_bytes += len(data)
                writer.write(data)
                await writer.drain()
