# SPDX-License-Identifier: Apache-2.0
"""The server's Deployment as podman runs it: confined, asked by its probe, stopped in the middle of a round.

FED_SOPHIA_IMAGES=1 pytest tests/deploy/test_played.py
"""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from protocol.messages import Outcome, Receipt
from tests.deploy.containers import (
    BUILDS_WITHIN_S,
    DRAINS_WITHIN_S,
    RUNS_WITHIN_S,
    ServerInPod,
    built,
    podman,
)
from tests.deploy.test_images import USER
from tests.system.network.devices import a_device, a_run, an_update, deliver

NUMBERS = 1_000_000
"""An update has 4 MB."""

pytestmark = [
    pytest.mark.skipif("FED_SOPHIA_IMAGES" not in os.environ, reason="takes minutes: FED_SOPHIA_IMAGES=1"),
    pytest.mark.timeout(BUILDS_WITHIN_S + RUNS_WITHIN_S),
]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerInPod]:
    server = ServerInPod(tmp_path / "server", await asyncio.to_thread(built, "server"))
    try:
        await server.start()
        yield server
    finally:
        server.remove()


async def test_it_runs_as_nobody_with_no_rights_within_its_limits_and_finds_itself_well(
    server: ServerInPod,
) -> None:
    name = server.container
    assert podman("exec", name, "id", "-u").strip() == str(USER)
    said = podman("exec", name, "cat", "/proc/1/status")
    status = dict(line.split(":\t", 1) for line in said.splitlines() if ":\t" in line)
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    [inspected] = json.loads(podman("inspect", name))
    assert inspected["HostConfig"]["ReadonlyRootfs"] is True
    assert inspected["HostConfig"]["Memory"] == 2 * 1024**3
    podman("healthcheck", "run", name)
    async with server.operator() as operator:
        assert await operator.runs() == ()


async def test_a_stop_in_the_middle_of_a_round_lets_what_is_on_its_way_arrive_and_the_round_goes_on(
    server: ServerInPod, tmp_path: Path
) -> None:
    update = an_update(0.001, NUMBERS)
    size, half_is_there, stop_was_asked_for = len(update.body), asyncio.Event(), asyncio.Event()
    async with (
        a_run(server, cohort=3, quorum=3, numbers=NUMBERS) as run_id,
        a_device(server, server.url, "early") as early,
        a_device(server, server.url, "on-its-way") as on_its_way,
        a_device(server, server.url, "late") as late,
    ):
        devices = (early, on_its_way, late)
        assignments = await asyncio.gather(*(device.assignment() for device in devices))
        received = await early.send(await early.declare(assignments[0], update), update)
        url = await on_its_way.declare(assignments[1], update)

        async def in_two_halves() -> AsyncIterator[bytes]:
            yield update.body[: size // 2]
            half_is_there.set()  # more than a socket holds
            await stop_was_asked_for.wait()
            yield update.body[size // 2 :]

        sending = asyncio.create_task(on_its_way.client.send_part(url, 0, size, in_two_halves(), whole=True))
        await half_is_there.wait()
        stopping = asyncio.create_task(server.end(signal.SIGTERM))
        async with asyncio.timeout(DRAINS_WITHIN_S):
            while "stopping (SIGTERM)" not in await asyncio.to_thread(server.said):
                await asyncio.sleep(0.05)
        stop_was_asked_for.set()
        arrived = await sending
        assert await stopping == 0
        assert isinstance(arrived, Receipt)

        await server.start()
        await deliver(late, assignments[2].assignment_id, update, tmp_path)
        run = await server.run_ended(run_id)

        assert run.version == 1
        kept = [await device.receipt(each, update) for device, each in zip(devices, assignments, strict=True)]
        assert {each.outcome for each in kept} == {Outcome.COUNTED}
        assert [each.received_ms for each in kept[:2]] == [received.received_ms, arrived.received_ms]
