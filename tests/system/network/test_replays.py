# SPDX-License-Identifier: Apache-2.0
"""Requests of an old round that come again when the run is rounds further: nothing changes."""

from pathlib import Path

from protocol.messages import Receipt
from tests.system.conftest import ServerProcess
from tests.system.network.faults import UNHARMED, Behind, Fault, Kind, Request
from tests.system.network.federation import (
    DECLARE,
    UPLOAD,
    WORKERS,
    everything_counts_once,
    federate,
    receipts_given,
)
from tests.system.network.mistreating_proxy import MistreatingProxy


def first_round_again_in_the_third(request: Request) -> Fault:
    """Every declaration and every body of round 1 comes once more when two rounds have been sent."""
    if request.route in (DECLARE, UPLOAD) and request.ordinal <= WORKERS:
        return Fault(replay=Behind(UPLOAD, more=2 * WORKERS, at_most_s=60))
    return UNHARMED


async def test_a_replayed_upload_of_an_earlier_round_gets_its_old_receipt_and_changes_nothing(
    server: ServerProcess, tmp_path: Path, undisturbed: dict[str, dict[str, str]]
) -> None:
    async with MistreatingProxy(server.port, first_round_again_in_the_third) as proxy:
        ended = await federate(server, proxy.url, tmp_path / "replayed", "fed-sophia")
    assert ended.tensors == undisturbed["fed-sophia"]
    await everything_counts_once(server, proxy, ended)

    replays = [exchange for exchange in proxy.exchanges if exchange.is_copy]
    assert proxy.applied == {Kind.REPLAYED: 2 * WORKERS}
    assert [replay.status for replay in replays] == [200] * (2 * WORKERS)
    again = {Receipt.model_validate_json(bytes(replay.answer)) for replay in replays}
    assert {receipt.version for receipt in again} == {1}, "counted long ago, and there alone"
    assert len(again) == WORKERS
    given = {(receipt.assignment_id, receipt.digest) for receipt in receipts_given(proxy)}
    assert {(receipt.assignment_id, receipt.digest) for receipt in again} <= given
