# SPDX-License-Identifier: Apache-2.0
"""A body must keep a pace: who brings a byte now and then holds nothing up."""

import asyncio

import pytest

from protocol.codec import MEDIA_TYPE, digest_of

BETWEEN_BYTES_S = 0.01


async def dripping(body, dripped):
    """A byte at a time, with pauses; counts into `dripped`. The sender has only so much patience."""
    for byte in body[:1_000]:
        yield bytes([byte])
        dripped.append(byte)
        await asyncio.sleep(BETWEEN_BYTES_S)


async def declared(server, worker, assignment, **changes):
    update = server.an_update(assignment, **changes)
    return update, (await worker.declare(assignment, update.header)).json()["upload_url"]


def interrupted(answer):
    return (answer.status_code, answer.json()["code"]) == (408, "upload-interrupted")


async def test_a_body_that_drips_is_given_up_and_what_came_of_it_is_kept(start_server):
    server = await start_server(body_timeout_s=0.2, min_body_bytes_per_s=10_000)
    _, [(worker, assignment), _] = await server.a_round()
    update, url = await declared(server, worker, assignment)
    dripped = []
    async with asyncio.timeout(10):
        answer = await worker.put(url, dripping(update.body, dripped), Content_Length=str(len(update.body)))
    assert interrupted(answer)
    assert "expected 2000, or all that are left" in answer.json()["detail"]
    held = int((await worker.http.head(url)).headers["upload-offset"])
    assert 0 < held <= len(dripped) + 1 < len(update.body)
    assert (await worker.put(url, update.body)).status_code == 200


async def test_an_operators_body_keeps_the_pace_too(start_server, message):
    server = await start_server(body_timeout_s=0.2, min_body_bytes_per_s=10_000)
    body = message("state", {"params": {"w": [1.0] * 200}})
    async with asyncio.timeout(10):
        answer = await server.operator.put(
            f"/v1/tensors/{digest_of([body])}",
            content=dripping(body, []),
            headers={"Content-Type": MEDIA_TYPE, "Content-Length": str(len(body))},
        )
    assert interrupted(answer)


async def test_a_slow_body_that_keeps_the_pace_may_take_longer_than_one_window(start_server):
    server = await start_server(body_timeout_s=0.2, min_body_bytes_per_s=10)
    _, [(worker, assignment), _] = await server.a_round()
    update, url = await declared(server, worker, assignment)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    async with asyncio.timeout(60):
        content = dripping(update.body, [])
        answer = await worker.put(url, content, Content_Length=str(len(update.body)))
    assert answer.status_code == 200, answer.text
    assert loop.time() - began_s > 0.4


async def test_a_flood_of_slow_senders_does_not_keep_an_honest_worker_from_its_turn(start_server):
    server = await start_server(
        max_uploads=4, max_uploads_per_worker=1, body_timeout_s=1.5, min_body_bytes_per_s=10_000
    )
    _, [(honest, its), *slow] = await server.a_round(13)
    _, its_url = await declared(server, honest, its)
    body = server.an_update(its).body

    async def drip(worker, assignment):
        update, url = await declared(server, worker, assignment)
        return await worker.put(url, dripping(update.body, []), Content_Length=str(len(update.body)))

    refused = 0
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        senders = [group.create_task(drip(*each)) for each in slow]
        while server.service.uploading.taken < 4:
            await asyncio.sleep(0)
        while (answer := await honest.put(its_url, body)).status_code == 429:
            refused += 1
            server.clock.advance(1_000)
            await asyncio.sleep(BETWEEN_BYTES_S)
    assert answer.status_code == 200
    assert refused
    assert {sender.result().status_code for sender in senders} == {408, 429}


@pytest.mark.parametrize("path", ["/v1/workers", "/v1/runs"])
async def test_a_json_body_must_be_whole_in_time(start_server, path):
    server = await start_server(body_timeout_s=0.2)
    dripped = []
    async with asyncio.timeout(10):
        answer = await server.client().post(path, content=dripping(b" " * 1_000, dripped))
    assert interrupted(answer)
    assert len(dripped) < 1_000
    text = (await server.operator.get("/metrics")).text
    assert 'fed_sophia_refusals_total{code="upload-interrupted"} 1.0' in text
