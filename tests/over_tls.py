# SPDX-License-Identifier: Apache-2.0
"""An application behind real TLS on this machine, with the arguments of `fed-sophia serve`."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn

from ps_service.settings import Settings
from ps_service.tls import tls_arguments
from tests.certificates import Issued

Application = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]


@asynccontextmanager
async def over_tls(
    app: Application, issued: Issued, client_ca: Path | None = None, port: int = 0
) -> AsyncIterator[str]:
    """Serve while this is open; gives the address."""
    settings = Settings(tls_cert=issued.chain, tls_key=issued.key, tls_client_ca=client_ca)
    config = uvicorn.Config(
        app, log_config=None, lifespan="off", timeout_graceful_shutdown=1, **tls_arguments(settings)
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    listener = socket.create_server(("127.0.0.1", port))
    await server.startup(sockets=[listener])
    try:
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        await server.shutdown(sockets=[listener])
