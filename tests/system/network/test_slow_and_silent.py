# SPDX-License-Identifier: Apache-2.0
"""A body that creeps is waited for; one that stops is given up, and nobody else has to wait for it."""

import asyncio

import pytest

from protocol.errors import ServerUnreachable, UploadInterrupted
from protocol.messages import RunStatus
from tests.system.conftest import ServerProcess
from tests.system.network.conftest import SILENCE_S
from tests.system.network.devices import a_device, a_run, an_update
from tests.system.network.exchange import Exchange
from tests.system.network.faults import Fault, Kind, Stall, on_route
from tests.system.network.federation import UPLOAD, receipts_given
from tests.system.network.mistreating_proxy import MistreatingProxy

HALF = 100_000
NOTICED_S = 8.0
"""A busy machine may take so much longer to give a body up."""


def took_s(exchange: Exchange) -> float:
    """Until the server answered."""
    assert exchange.answered_s is not None
    return exchange.answered_s - exchange.began_s


async def test_a_slow_body_that_moves_is_taken_however_long_it_takes(impatient_server: ServerProcess) -> None:
    creeping = Fault(up_bytes_per_s=64_000, stall=Stall(HALF, for_s=SILENCE_S / 2))
    async with (
        MistreatingProxy(impatient_server.port, on_route(UPLOAD, creeping)) as proxy,
        a_device(impatient_server, proxy.url, "creeping") as device,
        a_run(impatient_server, cohort=1, quorum=1),
    ):
        assignment, update = await device.assignment(), an_update(1.0)
        receipt = await device.send(await device.declare(assignment, update), update)
    [upload] = proxy.on(UPLOAD)
    assert receipt.digest == update.header.digest
    assert took_s(upload) > 3 * SILENCE_S
    assert proxy.applied == {Kind.SLOW_UP: 1, Kind.STALLED: 1}


async def test_a_body_that_falls_silent_is_given_up_in_time_while_others_are_served(
    impatient_server: ServerProcess,
) -> None:
    silent = Fault(stall=Stall(HALF, for_s=60))
    async with (
        MistreatingProxy(impatient_server.port, on_route(UPLOAD, silent)) as proxy,
        a_device(impatient_server, proxy.url, "silent") as device,
        a_device(impatient_server, proxy.url, "other") as other,
        a_run(impatient_server, cohort=2, quorum=2) as run_id,
    ):
        assignment, its_assignment = await asyncio.gather(device.assignment(), other.assignment())
        update, its_update = an_update(1.0), an_update(2.0)
        sending = asyncio.create_task(device.send(await device.declare(assignment, update), update))
        async with asyncio.timeout(20):
            while not (proxy.on(UPLOAD) and proxy.on(UPLOAD)[0].sent_bytes == HALF):
                await asyncio.sleep(0.01)
        [stalled] = proxy.on(UPLOAD)

        await other.send(await other.declare(its_assignment, its_update), its_update)
        assert stalled.answered_s is None, "the other was served while this one was silent"
        with pytest.raises((UploadInterrupted, ServerUnreachable)):
            await asyncio.wait_for(sending, 30)
        assert (stalled.status, stalled.sent_bytes) == (408, HALF)
        assert SILENCE_S <= took_s(stalled) <= SILENCE_S + NOTICED_S

        again = await device.send(await device.declare(assignment, update), update, first=HALF)
        assert again.digest == update.header.digest
        assert {receipt.digest for receipt in receipts_given(proxy)} == {
            again.digest,
            its_update.header.digest,
        }
        assert (await impatient_server.run_ended(run_id)).status is RunStatus.FINISHED
