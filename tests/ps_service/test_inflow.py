# SPDX-License-Identifier: Apache-2.0
"""A body waits in batches: bounded while nobody takes it, whole at its end, lost with its connection."""

import asyncio
import hashlib

import pytest
from starlette.requests import ClientDisconnect

from ps_service.inflow import Inflow, inflow_of
from ps_service.pieces import MOST_BYTES

BATCH_BYTES = 1024
PIECE = bytes(BATCH_BYTES // 4)


class Reading:
    """A connection that can be stopped from being read."""

    def __init__(self) -> None:
        self.paused = False

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False


@pytest.fixture
def reading():
    return Reading()


@pytest.fixture
def inflow(reading):
    return Inflow(reading.pause, reading.resume)


async def test_pieces_are_given_once_they_are_a_batch(inflow):
    waiting = asyncio.create_task(inflow.batch(BATCH_BYTES))
    for _ in range(3):
        inflow.put(PIECE)
        await asyncio.sleep(0)
        assert not waiting.done()
    inflow.put(PIECE)
    assert await waiting == [PIECE] * 4
    assert inflow.held_bytes == 0


async def test_who_sends_faster_than_is_taken_is_stopped_and_goes_on(inflow, reading):
    inflow.put(PIECE * 4)
    await inflow.batch(BATCH_BYTES)
    while not reading.paused:
        inflow.put(PIECE)
    assert inflow.held_bytes == BATCH_BYTES
    await inflow.batch(BATCH_BYTES)
    assert not reading.paused


async def test_the_end_gives_what_is_there_and_then_nothing(inflow):
    inflow.put(PIECE)
    inflow.end()
    assert await inflow.batch(BATCH_BYTES) == [PIECE]
    assert await inflow.batch(BATCH_BYTES) == []
    inflow.break_off()  # once it is whole, the connection is of no interest
    assert await inflow.batch(BATCH_BYTES) == []


async def test_a_connection_that_breaks_gives_what_came_and_says_so(inflow):
    inflow.put(PIECE)
    inflow.break_off()
    assert await inflow.batch(BATCH_BYTES) == [PIECE]
    with pytest.raises(ClientDisconnect):
        await inflow.batch(BATCH_BYTES)


async def test_a_wait_that_is_cut_short_leaves_what_came(inflow):
    inflow.put(PIECE)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await inflow.batch(BATCH_BYTES)
    assert inflow.held_bytes == len(PIECE)
    assert inflow.taken() == [PIECE]


async def test_a_server_that_fills_none_is_read_as_asgi_has_it(inflow):
    assert inflow_of({"extensions": {}}, inflow) is inflow
    assert inflow_of({}, inflow) is inflow


async def test_every_byte_of_a_large_body_arrives_in_order_over_a_socket(server):
    """Cut by the socket as it likes, begun before anybody takes it, sent on while it is written."""
    model = {"w": (3 * MOST_BYTES // 2,)}
    _, [(worker, assignment), _] = await server.a_round(model=model)
    update = server.an_update(assignment, model=model)
    url = (await worker.declare(assignment, update.header)).json()["upload_url"]
    token = await worker.token()
    async with server.on_a_socket() as client:
        answer = await client.put(
            url,
            content=update.body,
            headers={
                "Authorization": f"Bearer {token}",
                "Content-Type": "application/vnd.fed-sophia.v1+msgpack",
                "Expect": "100-continue",
            },
        )
    assert answer.status_code == 200, answer.text
    assert answer.json()["digest"] == hashlib.sha256(update.body).hexdigest()


async def test_who_is_to_give_way_does_although_there_is_always_more(server):
    """A body that is there whole is a batch each time it is asked for, and nothing is waited for."""
    model = {"w": (8 * MOST_BYTES // 4,)}
    _, [(worker, assignment), _] = await server.a_round(model=model)
    update = server.an_update(assignment, model=model)
    url = (await worker.declare(assignment, update.header)).json()["upload_url"]

    async def all_there():
        for start in range(0, len(update.body), MOST_BYTES):
            if start == 2 * MOST_BYTES:
                server.service.uploads.cut_off(worker.worker_id)
            yield update.body[start : start + MOST_BYTES]

    answer = await worker.put(url, all_there(), Content_Length=str(len(update.body)))
    assert (answer.status_code, answer.json()["code"]) == (408, "upload-interrupted")
