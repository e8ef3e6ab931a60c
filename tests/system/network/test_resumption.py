# SPDX-License-Identifier: Apache-2.0
"""Large updates and global state over thin links and through a server that is killed: real processes."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from protocol.codec import digest_of
from protocol.messages import Outcome
from tests.system.conftest import ServerProcess
from tests.system.network.devices import a_device, a_run, an_update, deliver, received_bytes
from tests.system.network.faults import Fault, Request, Stall
from tests.system.network.mistreating_proxy import MistreatingProxy
from worker.downloader import Downloader

MEGABYTE = 10**6
LARGE = 25_000_000
"""Parameters: an update of 100 MB."""
LONG = pytest.mark.skipif("FED_SOPHIA_LONG" not in os.environ, reason="takes minutes: make test-long")


@pytest.fixture
async def own_server(tmp_path: Path) -> AsyncIterator[ServerProcess]:
    """A server of this test alone: it may be killed."""
    server = ServerProcess(tmp_path / "own")
    await server.start()
    yield server
    await server.kill()


def cut_every(size_bytes: int):
    def plan(request: Request) -> Fault:
        if request.method == "PATCH":
            return Fault(cut_request_at=size_bytes)
        if request.method == "GET" and "/tensors/" in request.path:
            return Fault(cut_answer_at=size_bytes)
        return Fault()

    return plan


async def test_a_hundred_megabytes_arrive_through_a_proxy_that_cuts_every_five(
    server: ServerProcess, tmp_path: Path
):
    update = an_update(0.001, LARGE)
    async with (
        MistreatingProxy(server.port, cut_every(5 * MEGABYTE)) as proxy,
        a_run(server, cohort=1, quorum=1, numbers=LARGE) as run_id,
        a_device(server, proxy.url, "thin-link") as device,
    ):
        assignment = await device.assignment()
        before = await received_bytes(server)

        state = await Downloader(device.client).fetch(run_id, assignment.tensors["params"])
        outcome = await deliver(device, assignment.assignment_id, update, tmp_path)

        assert digest_of([state]) == assignment.tensors["params"]
        assert outcome in (Outcome.PENDING, Outcome.COUNTED)
        accepted = await received_bytes(server) - before
        assert len(update.body) <= accepted < 1.1 * len(update.body)
        assert len(proxy.on("PATCH /v1/uploads/*")) >= 20


@pytest.mark.parametrize(
    ("size", "bytes_per_s", "pause_s", "timeout_s"),
    [
        pytest.param(40_000, 80_000, 0.5, 1.0, id="short"),
        pytest.param(2_500_000, 64_000, 3.0, 60.0, id="long", marks=[LONG, pytest.mark.timeout(600)]),
    ],
)
async def test_a_slow_upload_that_moves_is_never_given_up(
    tmp_path: Path, size: int, bytes_per_s: int, pause_s: float, timeout_s: float, monkeypatch
):
    """It takes much longer in all than the server lets a sender be silent."""
    monkeypatch.setenv("FED_SOPHIA_BODY_TIMEOUT_S", str(timeout_s))
    server = ServerProcess(tmp_path / "impatient")
    await server.start()
    update = an_update(0.001, size)
    stalls = Fault(
        up_bytes_per_s=bytes_per_s,
        stall=Stall(after_bytes=len(update.body) // 5, for_s=pause_s, every=True),
    )

    def slow_parts(request: Request) -> Fault:
        return stalls if request.method == "PATCH" else Fault()

    try:
        async with (
            MistreatingProxy(server.port, slow_parts, longest_exchange_s=500) as proxy,
            a_run(server, cohort=1, quorum=1, numbers=size),
            a_device(server, proxy.url, "slow") as device,
        ):
            assignment = await device.assignment()
            began = time.monotonic()
            await deliver(device, assignment.assignment_id, update, tmp_path)
            assert time.monotonic() - began > 2 * timeout_s
            assert len(proxy.on("PATCH /v1/uploads/*")) == 1
    finally:
        await server.kill()


async def test_a_server_killed_in_the_middle_of_an_upload_goes_on_from_what_it_had(
    own_server: ServerProcess, tmp_path: Path
):
    server = own_server
    numbers = 5_000_000
    update = an_update(0.001, numbers)
    async with (
        a_run(server, cohort=1, quorum=1, numbers=numbers),
        a_device(server, server.url, "device") as device,
    ):
        assignment = await device.assignment()
        url = await device.declare(assignment, update)

        async def three_fifths():
            yield update.body[: 3 * len(update.body) // 5]
            await asyncio.Event().wait()

        sending = asyncio.create_task(
            device.client.send_part(url, 0, len(update.body), three_fifths(), whole=True)
        )
        [part] = [server.data_dir / "parts" / url.rpartition("/")[2]]
        async with asyncio.timeout(30):
            while not part.exists() or part.stat().st_size < len(update.body) // 2:
                await asyncio.sleep(0.01)
        await server.kill()
        sending.cancel()
        await asyncio.wait([sending])
        held = part.stat().st_size
        await server.start()

        before = await received_bytes(server)
        outcome = await deliver(device, assignment.assignment_id, update, tmp_path)

        assert outcome in (Outcome.PENDING, Outcome.COUNTED)
        assert await received_bytes(server) - before <= len(update.body) - held + 100_000
