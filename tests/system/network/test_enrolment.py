# SPDX-License-Identifier: Apache-2.0
"""Enrolment over a network that cuts: a join token is used once for each device, however often it asks."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from protocol.errors import JoinTokenRefused
from tests.system.conftest import ServerProcess
from tests.system.network.devices import as_operator
from tests.system.network.faults import Behind, Fault, Kind, Twice, on_route
from tests.system.network.federation import ENROL, short_pauses
from tests.system.network.mistreating_proxy import MistreatingProxy
from worker.client import ServerClient
from worker.enrolment import Enrolling
from worker.identity import identity_in
from worker.options import WorkerOptions


async def enrolled(url: str, state_dir: Path, token: str) -> str:
    """Start a device as a worker starts; give the id under which the server knows it."""
    identity = identity_in(state_dir, url)
    options = WorkerOptions(
        server_url=url, join_token=token, name=state_dir.name, state_dir=state_dir, task="digits"
    )
    async with ServerClient(url) as client:
        pauses = short_pauses(options.name)
        return await Enrolling(client, options, "digits", lambda _event: None, pauses).enrol_once(identity)


async def known_workers(server: ServerProcess) -> set[str]:
    async with as_operator(server) as operator:
        return {worker["worker_id"] for worker in (await operator.get("/v1/workers")).json()["workers"]}


CUT_IN_EVERY_PLACE = (
    Fault(cut_request_at=40),
    Fault(lose_answer=True),
    Fault(cut_answer_at=0),
    Fault(cut_answer_at=10),
)
LATE = [Fault(sender_gone=True, behind=Behind(ENROL, at_most_s=30))]


@pytest.mark.parametrize(
    ("faults", "applied"),
    [
        (CUT_IN_EVERY_PLACE, {Kind.REQUEST_CUT: 1, Kind.ANSWER_LOST: 1, Kind.ANSWER_CUT: 2}),
        ([Fault(twice=Twice.AT_ONCE_FIRST_HEARD)], {Kind.TWICE_AT_ONCE: 1}),
        ([Fault(twice=Twice.AT_ONCE_SECOND_HEARD)], {Kind.TWICE_AT_ONCE: 1}),
        (
            [Fault(sender_gone=True, behind=Behind(ENROL, at_most_s=30))],
            {Kind.SENDER_GONE: 1, Kind.OVERTAKEN: 1},
        ),
    ],
    ids=["cut in every place", "twice at once, first heard", "twice at once, second heard", "overtaken"],
)
async def test_a_device_that_had_to_ask_again_used_one_use_of_its_token(
    server: ServerProcess, tmp_path: Path, faults: Sequence[Fault], applied: dict[Kind, int]
) -> None:
    token = await server.join_token(uses=2)
    before = await known_workers(server)
    async with MistreatingProxy(server.port, on_route(ENROL, *faults)) as proxy:
        first = await enrolled(proxy.url, tmp_path / "first", token)
        second = await enrolled(proxy.url, tmp_path / "second", token)
        with pytest.raises(JoinTokenRefused):
            await enrolled(proxy.url, tmp_path / "third", token)
        assert proxy.applied == applied
    assert await known_workers(server) - before == {first, second}
