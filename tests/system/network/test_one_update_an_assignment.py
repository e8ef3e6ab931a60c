# SPDX-License-Identifier: Apache-2.0
"""Two updates for one assignment, in the orders in which a network can bring them: one is taken and stays."""

import asyncio

import pytest

from protocol.errors import RunEnded, ServerUnreachable, UpdateConflict
from protocol.messages import Outcome, RoundSummary, RunStatus
from tests.system.conftest import ServerProcess
from tests.system.network.devices import Update, a_device, a_run, an_update, as_operator
from tests.system.network.faults import Behind, Fault, Kind, Stall, on_route
from tests.system.network.federation import DECLARE, UPLOAD, receipts_given, what_became_of
from tests.system.network.mistreating_proxy import MistreatingProxy

HALF = 100_000
CLOSE_NOW = "POST /v1/runs/*/rounds/*/aggregate"


async def the_round(server: ServerProcess, run_id: str) -> RoundSummary:
    async with server.operator() as operator:
        [round_] = await operator.rounds(run_id)
    return round_


async def until_ended(proxy: MistreatingProxy, uploads: int) -> None:
    """Wait until so many uploads have come to an end at the proxy, whichever."""
    async with asyncio.timeout(30):
        while len([upload for upload in proxy.on(UPLOAD) if upload.ended_s is not None]) < uploads:
            await asyncio.sleep(0.01)


def is_held_once(round_: RoundSummary, update: Update) -> bool:
    return (round_.admitted, round_.bytes_up) == (1, update.header.size_bytes)


async def test_another_digest_after_a_lost_receipt_is_refused_with_409_and_changes_nothing(
    server: ServerProcess,
) -> None:
    async with (
        MistreatingProxy(server.port, on_route(UPLOAD, Fault(lose_answer=True))) as proxy,
        a_device(server, proxy.url, "forgetful") as device,
        a_device(server, proxy.url, "other") as other,
        a_run(server, cohort=2, quorum=2) as run_id,
    ):
        assignment, _ = await asyncio.gather(device.assignment(), other.assignment())
        first, second = an_update(1.0), an_update(2.0)
        upload_url = await device.declare(assignment, first)
        with pytest.raises(ServerUnreachable):
            await device.send(upload_url, first)
        with pytest.raises(UpdateConflict):
            await device.declare(assignment, second)
        assert proxy.on(DECLARE)[-1].status == 409
        assert (await device.receipt(assignment, first)).digest == first.header.digest
        assert is_held_once(await the_round(server, run_id), first)
        assert proxy.applied == {Kind.ANSWER_LOST: 1}


async def test_a_late_body_is_not_taken_once_another_was_declared_in_its_place_and_sent(
    server: ServerProcess,
) -> None:
    late = Fault(sender_gone=True, behind=Behind(UPLOAD, at_most_s=30))
    async with (
        MistreatingProxy(server.port, on_route(UPLOAD, late)) as proxy,
        a_device(server, proxy.url, "undecided") as device,
        a_device(server, proxy.url, "other") as other,
        a_run(server, cohort=2, quorum=2) as run_id,
    ):
        assignment, _ = await asyncio.gather(device.assignment(), other.assignment())
        first, second = an_update(1.0), an_update(2.0)
        upload_url = await device.declare(assignment, first)
        with pytest.raises(ServerUnreachable):
            await device.send(upload_url, first)
        await device.send(await device.declare(assignment, second), second)
        await until_ended(proxy, uploads=2)
        assert proxy.on(UPLOAD)[0].status == 200
        assert proxy.on(UPLOAD)[1].status in (404, 409), "nobody wants it any more"
        assert [receipt.digest for receipt in receipts_given(proxy)] == [second.header.digest]
        assert is_held_once(await the_round(server, run_id), second)
        assert proxy.applied == {Kind.SENDER_GONE: 1, Kind.OVERTAKEN: 1}


@pytest.mark.parametrize("until", [DECLARE, UPLOAD])
async def test_a_body_is_not_taken_if_another_was_declared_or_sent_while_it_travelled(
    server: ServerProcess, until: str
) -> None:
    slow = Fault(sender_gone=True, stall=Stall(HALF, for_s=30, until=until))
    async with (
        MistreatingProxy(server.port, on_route(UPLOAD, slow)) as proxy,
        a_device(server, proxy.url, "undecided") as device,
        a_device(server, proxy.url, "other") as other,
        a_run(server, cohort=2, quorum=2) as run_id,
    ):
        assignment, _ = await asyncio.gather(device.assignment(), other.assignment())
        first, second = an_update(1.0), an_update(2.0)
        upload_url = await device.declare(assignment, first)
        with pytest.raises(ServerUnreachable):
            await device.send(upload_url, first)
        upload_url = await device.declare(assignment, second)
        if until == DECLARE:
            await until_ended(proxy, uploads=1)
        await device.send(upload_url, second)
        await until_ended(proxy, uploads=2)
        refused, taken = proxy.on(UPLOAD)
        assert taken.status == 200
        assert refused.status in (408, 404), (
            "it gives way; 404 where a busy server looked at it after the declaration"
        )
        assert [receipt.digest for receipt in receipts_given(proxy)] == [second.header.digest]
        assert is_held_once(await the_round(server, run_id), second)


async def test_a_lost_receipt_is_given_again_after_the_run_was_cancelled_and_says_why_it_does_not_count(
    server: ServerProcess,
) -> None:
    async with (
        MistreatingProxy(server.port, on_route(UPLOAD, Fault(lose_answer=True))) as proxy,
        a_device(server, proxy.url, "early") as early,
        a_device(server, proxy.url, "late") as late,
        a_run(server, cohort=2, quorum=2) as run_id,
    ):
        assignment, its_assignment = await asyncio.gather(early.assignment(), late.assignment())
        update, its_update = an_update(1.0), an_update(2.0)
        upload_url = await early.declare(assignment, update)
        its_url = await late.declare(its_assignment, its_update)
        with pytest.raises(ServerUnreachable):
            await early.send(upload_url, update)
        async with server.operator() as operator:
            assert (await operator.cancel(run_id)).status is RunStatus.CANCELLED
        with pytest.raises(RunEnded):
            await late.send(its_url, its_update)

        receipt = await early.receipt(assignment, update)
        assert (receipt.outcome, receipt.digest) == (Outcome.NOT_COUNTED, update.header.digest)
        assert receipt.reason
        assert set(await what_became_of(server, receipts_given(proxy))) == {assignment.assignment_id}


async def test_a_body_whose_round_closes_while_it_travels_gets_no_receipt(server: ServerProcess) -> None:
    slow = Fault(sender_gone=True, stall=Stall(HALF, for_s=30, until=CLOSE_NOW))
    async with (
        MistreatingProxy(server.port, on_route(UPLOAD, slow)) as proxy,
        a_device(server, proxy.url, "straggler") as straggler,
        a_device(server, proxy.url, "other") as other,
        as_operator(server, proxy.url) as operator,
        a_run(server, cohort=2, quorum=1) as run_id,
    ):
        assignment, its_assignment = await asyncio.gather(straggler.assignment(), other.assignment())
        update, its_update = an_update(1.0), an_update(2.0)
        upload_url = await straggler.declare(assignment, update)
        with pytest.raises(ServerUnreachable):
            await straggler.send(upload_url, update)
        await other.send(await other.declare(its_assignment, its_update), its_update)
        (await operator.post(f"/v1/runs/{run_id}/rounds/1/aggregate")).raise_for_status()
        assert (await server.run_ended(run_id)).status is RunStatus.FINISHED
        await until_ended(proxy, uploads=2)

        assert [upload.status for upload in proxy.on(UPLOAD)] == [409, 200]
        assert [upload.sent_bytes for upload in proxy.on(UPLOAD)] == [update.header.size_bytes] * 2
        missing = await operator.get(f"/v1/assignments/{assignment.assignment_id}/update")
        assert missing.status_code == 404
        [counted] = (await what_became_of(server, receipts_given(proxy))).values()
        assert (counted.digest, counted.version) == (its_update.header.digest, 1)
        assert is_held_once(await the_round(server, run_id), its_update)
