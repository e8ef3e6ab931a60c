# SPDX-License-Identifier: Apache-2.0
"""A server that ends without a goodbye, and another that goes on where it was."""

import asyncio

import pytest

from ps_service.background import background
from ps_service.effects import perform_effects


@pytest.fixture
def start(start_server):
    """Starts a server on the same files; nothing happens by itself."""
    return lambda **settings: start_server(on_disk=True, performing=False, **settings)


def again(server, worker):
    """The same worker, speaking to the server that came after."""
    return worker.moved_to(server)


async def test_a_round_goes_on_after_a_restart(start):
    server = await start()
    run_id, cohort = await server.a_round(3)
    first = await cohort[0][0].send(cohort[0][1])
    url = (await cohort[1][0].declare(cohort[1][1], server.an_update(cohort[1][1]).header)).json()[
        "upload_url"
    ]

    server = await start(clock=server.clock)
    cohort = [(again(server, worker), assignment) for worker, assignment in cohort]

    receipt = await cohort[0][0].http.get(f"/v1/assignments/{first.assignment_id}/update")
    assert receipt.json()["digest"] == first.digest
    assert (await cohort[0][0].ask()).status_code == 204
    assert await cohort[1][0].assignment() == cohort[1][1]
    declared_before = server.an_update(cohort[1][1])
    assert (await cohort[1][0].put(url, declared_before.body)).status_code == 200
    await cohort[2][0].send(cohort[2][1])
    await server.aggregate_now()
    run = await server.show(run_id)
    assert (run.version, run.round) == (1, 2)


async def test_what_was_asked_for_before_the_end_is_performed_after_it(start):
    server = await start()
    run_id, cohort = await server.a_round()
    for worker, assignment in cohort:
        await worker.send(assignment)
    assert (await server.rounds(run_id))[0]["status"] == "aggregating"

    server = await start(clock=server.clock)
    async with background(server.service), asyncio.timeout(10):
        while (await server.show(run_id)).version == 0:
            await asyncio.sleep(0.01)
    assert [r["status"] for r in await server.rounds(run_id)] == ["committed", "collecting"]


async def test_an_aggregate_performed_twice_is_one_version(start):
    """As when the server dies between the seal of the new state and its commit; here both come to commit."""
    server = await start()
    run_id, cohort = await server.a_round()
    for worker, assignment in cohort:
        await worker.send(assignment)
    other = await start(clock=server.clock)
    await asyncio.gather(server.aggregate_now(), other.aggregate_now())
    await server.aggregate_now()

    versions = (await server.operator.get(f"/v1/runs/{run_id}/versions")).json()["versions"]
    assert [version["version"] for version in versions] == [0, 1]
    assert [r["round"] for r in await server.rounds(run_id)] == [1, 2]
    receipt = await server.operator.get(f"/v1/assignments/{cohort[0][1]['assignment_id']}/update")
    assert (receipt.json()["outcome"], receipt.json()["version"]) == ("counted", 1)


async def test_a_deadline_that_passed_while_the_server_was_down_is_kept(start):
    server = await start()
    run_id, cohort = await server.a_round(3, quorum=1, deadline_s=5)
    await cohort[0][0].send(cohort[0][1])
    server.clock.advance(60_000)

    server = await start(clock=server.clock)
    async with background(server.service), asyncio.timeout(10):
        while (await server.show(run_id)).version == 0:
            await asyncio.sleep(0.01)
    assert (await server.rounds(run_id))[0]["admitted"] == 1


async def test_a_broken_off_body_leaves_nothing_and_is_sent_again(start):
    server = await start()
    _, [(worker, assignment), _] = await server.a_round()
    update = server.an_update(assignment)
    url = (await worker.declare(assignment, update.header)).json()["upload_url"]
    staged = server.stores.blobs.stage()
    staged.write(update.body[:50])  # and then the process dies

    server = await start(clock=server.clock)
    assert (await server.inventory())[1] == [str(server.stores.blobs.path(assignment["tensors"]["params"]))]
    assert (await again(server, worker).put(url, update.body)).status_code == 200
    staged.discard()


async def test_a_store_that_fails_for_a_while_costs_no_update(start):
    server = await start()
    run_id, cohort = await server.a_round()
    for worker, assignment in cohort:
        await worker.send(assignment)
    staging = server.directory / "staging"
    staging.rename(server.directory / "away")

    assert not await perform_effects(server.runner)
    assert (await server.rounds(run_id))[0]["status"] == "aggregating"

    (server.directory / "away").rename(staging)
    await server.aggregate_now()
    assert (await server.rounds(run_id))[0]["status"] == "committed"
    worker, assignment = cohort[0]
    receipt = (await worker.http.get(f"/v1/assignments/{assignment['assignment_id']}/update")).json()
    assert (receipt["outcome"], receipt["version"]) == ("counted", 1)
