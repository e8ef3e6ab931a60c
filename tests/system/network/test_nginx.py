# SPDX-License-Identifier: Apache-2.0
"""Behind a real nginx with the configuration that we hand out: waits, events, large bodies, addresses."""

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from fed_sophia.operator_client import OperatorClient
from protocol.codec import digest_of
from protocol.errors import ServerUnreachable
from protocol.messages import Outcome
from ps_service.settings import Settings
from tests.system.conftest import ServerProcess, running
from tests.system.network.devices import (
    a_device,
    a_run,
    an_update,
    as_operator,
    deliver,
    received_bytes,
)
from tests.system.network.federation import federate
from tests.system.network.nginx import CONFIGURATION, DEPLOY, NginxProcess, annotated, directives, nginx
from worker.answers import NothingYet
from worker.downloader import Downloader

MEGABYTE = 10**6
AT_ONCE_S = 5.0
"""Longer than it takes, and much shorter than the 15 s after which the server says that it is still there."""
INGRESS_KEEPS_S = 60.0
"""What ingress-nginx keeps an idle connection for, unless its own ConfigMap says otherwise."""
MAY_BE_LATE_S = 10.0
LONG = pytest.mark.skipif("FED_SOPHIA_LONG" not in os.environ, reason="takes minutes: make test-long")


@pytest.fixture(scope="module")
def with_nginx(require_part: Callable[[bool, str], None]) -> None:
    require_part(nginx() is not None, "nginx")


@asynccontextmanager
async def a_server_behind(folder: Path, **variables: str) -> AsyncIterator[ServerProcess]:
    async with running(ServerProcess(folder / "server", os.environ | variables)) as process:
        yield process
        await process.kill()


@asynccontextmanager
async def an_nginx(folder: Path, server: ServerProcess, **changes: str) -> AsyncIterator[NginxProcess]:
    """Args: changes: {directive: another value than ours}."""
    said = directives()
    process = NginxProcess(
        folder / "nginx",
        server.port,
        {f"{name} {said[name]};": f"{name} {value};" for name, value in changes.items()},
    )
    await process.start()
    try:
        yield process
    finally:
        process.kill()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def behind(with_nginx: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServerProcess]:
    """A server that believes the proxies of this machine."""
    folder = tmp_path_factory.mktemp("behind")
    async with a_server_behind(folder, FED_SOPHIA_TRUSTED_PROXIES="127.0.0.1") as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def proxy(
    behind: ServerProcess, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[NginxProcess]:
    async with an_nginx(tmp_path_factory.mktemp("proxy"), behind) as process:
        yield process


def operator_through(proxy: NginxProcess, server: ServerProcess) -> OperatorClient:
    key = (server.data_dir / "operator.key").read_text().strip()
    return OperatorClient(proxy.url, key, tls=proxy.tls)


def test_the_configuration_says_what_the_ingress_says() -> None:
    said = directives()
    assert {name: said[name] for name in annotated()} == annotated()


def test_nobody_is_cut_off_who_waits_as_long_as_the_server_lets_them() -> None:
    for name in ("proxy_read_timeout", "proxy_send_timeout"):
        assert float(directives()[name].removesuffix("s")) > Settings(_env_file=None).max_wait_s


@pytest.mark.parametrize(
    ("wait_s", "borne_s"),
    [
        pytest.param(3.0, 1.5, id="short"),
        # longer than nginx bears that is told nothing
        pytest.param(100.0, 60.0, id="long", marks=[LONG, pytest.mark.timeout(300)]),
    ],
)
async def test_a_wait_is_not_cut_off_unless_the_time_out_is_shorter(
    wait_s: float, borne_s: float, behind: ServerProcess, proxy: NginxProcess, tmp_path: Path
) -> None:
    async with a_device(behind, proxy.url, "waits", proxy.tls) as device:
        began = time.monotonic()
        assert isinstance(await device.client.next_assignment(device.worker_id, wait_s), NothingYet)
        # the server spreads the returns of those who wait
        assert time.monotonic() - began > borne_s
    async with (
        an_nginx(tmp_path, behind, proxy_read_timeout="1s") as impatient,
        a_device(behind, impatient.url, "cut-off", impatient.tls) as device,
    ):
        with pytest.raises(ServerUnreachable, match="504"):
            await device.client.next_assignment(device.worker_id, wait_s)


def test_an_idle_connection_is_closed_by_the_proxy_and_not_under_its_next_request() -> None:
    kept = re.findall(r"^ {4}keepalive_timeout (\d+)s;", CONFIGURATION.read_text("utf-8"), flags=re.MULTILINE)
    assert [
        float(seconds) + MAY_BE_LATE_S <= Settings(_env_file=None).proxy_keep_alive_s for seconds in kept
    ] == [True]
    told = dict(
        re.findall(r"^(\w+)=(.*)$", (DEPLOY / "k8s" / "base" / "server.env").read_text("utf-8"), re.MULTILINE)
    )
    assert float(told["FED_SOPHIA_PROXY_KEEP_ALIVE_S"]) >= INGRESS_KEEPS_S + MAY_BE_LATE_S


async def test_events_come_as_they_happen(behind: ServerProcess, proxy: NginxProcess) -> None:
    async with (
        a_run(behind, cohort=2, quorum=2) as run_id,
        as_operator(behind, proxy.url, proxy.tls) as http,
        http.stream("GET", f"/v1/runs/{run_id}/events") as answer,
    ):
        lines = answer.aiter_lines()

        async def told(word: str) -> None:
            async with asyncio.timeout(AT_ONCE_S):
                async for line in lines:
                    if line.startswith("data:") and word in line:
                        return

        await told('"waiting"')
        async with operator_through(proxy, behind) as operator:
            await operator.cancel(run_id)
        await told('"cancelled"')


async def test_an_nginx_killed_in_the_middle_of_an_upload_costs_what_was_in_flight(
    behind: ServerProcess, proxy: NginxProcess, tmp_path: Path
) -> None:
    numbers = 25_000_000
    update = an_update(0.001, numbers)
    size = len(update.body)
    async with (
        a_run(behind, cohort=1, quorum=1, numbers=numbers),
        a_device(behind, proxy.url, "device", proxy.tls) as device,
    ):
        assignment = await device.assignment()
        before = await received_bytes(behind)
        url = await device.declare(assignment, update)

        async def three_fifths() -> AsyncIterator[bytes]:
            yield update.body[: 3 * size // 5]
            await asyncio.Event().wait()

        sending = asyncio.create_task(device.client.send_part(url, 0, size, three_fifths(), whole=True))
        part = behind.data_dir / "parts" / url.rpartition("/")[2]
        async with asyncio.timeout(30):  # the server has it while the sender is not done: it waits nowhere
            while not part.exists() or part.stat().st_size < size // 2:
                await asyncio.sleep(0.01)
        proxy.kill()
        sending.cancel()
        await asyncio.wait([sending])
        await proxy.start()

        outcome = await deliver(device, assignment.assignment_id, update, tmp_path)

        assert outcome in (Outcome.PENDING, Outcome.COUNTED)
        assert size <= await received_bytes(behind) - before < size + MEGABYTE, "hardly a byte came twice"


async def test_a_model_of_600_megabytes_goes_up_and_comes_down(
    behind: ServerProcess, proxy: NginxProcess
) -> None:
    numbers = 150_000_000
    async with (
        a_run(behind, 1, 1, numbers, lambda: operator_through(proxy, behind)) as run_id,
        a_device(behind, proxy.url, "large", proxy.tls) as device,
    ):
        assignment = await device.assignment()
        state = await Downloader(device.client).fetch(run_id, assignment.tensors["params"])
        assert state.nbytes > 4 * numbers
        assert await asyncio.to_thread(digest_of, [state]) == assignment.tensors["params"]


async def refused_after(proxy: NginxProcess, address: str, at_most: int) -> int:
    """Ask from an address of this machine until it has asked too often; give how often it was answered."""
    transport = httpx.AsyncHTTPTransport(verify=proxy.tls, local_address=address)
    async with httpx.AsyncClient(base_url=proxy.url, transport=transport) as http:
        for asked in range(at_most):
            # what it says of itself is another address each time
            answer = await http.get("/v1/runs", headers={"X-Forwarded-For": f"10.0.0.{asked}"})
            if answer.status_code == 429:
                return asked
            assert answer.status_code == 401
    return at_most


@pytest.mark.parametrize(("trusted", "is_another"), [("127.0.0.1", True), ("", False)])
async def test_a_device_is_known_by_its_own_address_where_the_proxy_is_trusted(
    trusted: str, is_another: bool, with_nginx: None, tmp_path: Path
) -> None:
    narrow = {"FED_SOPHIA_TRUSTED_PROXIES": trusted, "FED_SOPHIA_REQUESTS_PER_S_PER_ADDRESS": "1"}
    async with a_server_behind(tmp_path, **narrow) as server, an_nginx(tmp_path, server) as proxy:
        assert 20 <= await refused_after(proxy, "127.0.0.2", at_most=100) < 100
        assert (await refused_after(proxy, "127.0.0.3", at_most=10) == 10) is is_another


async def test_workers_that_hold_a_join_token_and_nothing_else_come_to_the_same_model_through_it(
    with_nginx: None, tmp_path: Path, undisturbed: dict[str, dict[str, str]]
) -> None:
    server = ServerProcess(tmp_path / "server")
    proxy = NginxProcess(tmp_path / "nginx", server.port)
    server.options = ("--tls-ca", str(proxy.ca))  # join tokens carry its hash
    await server.start()
    try:
        await proxy.start()
        run = await federate(server, proxy.url, tmp_path / "workers", "fed-sophia-shared")
        assert run.tensors == undisturbed["fed-sophia-shared"]
    finally:
        proxy.kill()
        await server.kill()
