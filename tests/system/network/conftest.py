# SPDX-License-Identifier: Apache-2.0
"""What the mistreated federations are compared with, and a server that soon gives up the silent."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.system.conftest import ServerProcess, running
from tests.system.network.federation import federate

ALGORITHMS = ("fed-sophia-shared", "fed-sophia")
"""The one shares three bundles of state, the other keeps m and h on the worker."""

SILENCE_S = 1.0


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServerProcess]:
    """One server for all tests of this folder; each has runs and workers of its own."""
    async with running(ServerProcess(tmp_path_factory.mktemp("network") / "server")) as process:
        yield process


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def impatient_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServerProcess]:
    """A server that gives up a body from which nothing has come for `SILENCE_S`."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FED_SOPHIA_BODY_TIMEOUT_S", str(SILENCE_S))
        async with running(ServerProcess(tmp_path_factory.mktemp("impatient") / "server")) as process:
            yield process


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def undisturbed(
    server: ServerProcess, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, str]]:
    """{algorithm: {bundle: digest}} of the last version, with nothing between the workers and the server."""
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = {name: await federate(server, server.url, folder / name, name) for name in ALGORITHMS}
    return {name: each.tensors for name, each in ended.items()}
