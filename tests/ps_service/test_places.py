# SPDX-License-Identifier: Apache-2.0
"""So many requests that last go on at a time; one more is told to come again, and nothing is noted of it."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import select

from protocol.codec import MEDIA_TYPE, PART_MEDIA_TYPE, digest_of
from protocol.errors import TooManyUploads
from ps_service.places import Places
from ps_service.storage.schema import assignments


def too_many(answer, code="too-many-uploads"):
    """Whether an answer says this, and when to come again."""
    return (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (429, code, "1")


@asynccontextmanager
async def sending(server, put, body):
    """A body is on its way while this is open; gives the task that ends once it is whole."""

    async def halting():
        yield body[:1]
        begun.set()
        await go_on.wait()
        yield body[1:]

    begun, go_on = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(put(halting()))
        await begun.wait()
        while not server.service.uploading.taken:
            await asyncio.sleep(0)
        yield task
        go_on.set()


@asynccontextmanager
async def sending_update(server, worker, assignment):
    update = server.an_update(assignment)
    url = (await worker.declare(assignment, update.header)).json()["upload_url"]
    length = str(len(update.body))
    async with sending(
        server, lambda body: worker.put(url, body, Content_Length=length), update.body
    ) as task:
        yield task


async def refused_update(server, worker, assignment):
    """Try to send the update of an assignment; gives its url, its body and the answer."""
    update = server.an_update(assignment)
    url = (await worker.declare(assignment, update.header)).json()["upload_url"]
    return url, update.body, await worker.put(url, update.body)


async def test_a_body_beyond_the_total_is_refused_and_taken_later(start_server):
    server = await start_server(max_uploads=1)
    run_id, [(first, its), (second, others)] = await server.a_round()
    async with sending_update(server, first, its) as task:
        url, body, answer = await refused_update(server, second, others)
        assert too_many(answer)
    assert task.result().status_code == 200
    [round_] = await server.rounds(run_id)
    standings = (await server.operator.get(f"/v1/runs/{run_id}/rounds/1/workers")).json()["workers"]
    assert [each["standing"] for each in standings] == ["received", "asked"]
    assert (await second.put(url, body)).status_code == 200
    assert round_["admitted"] == 1


async def test_a_part_needs_a_place_too(start_server):
    server = await start_server(max_uploads=1)
    _, [(first, its), (second, others)] = await server.a_round()
    async with sending_update(server, first, its):
        update = server.an_update(others)
        url = (await second.declare(others, update.header)).json()["upload_url"]
        headers = {"Content-Type": PART_MEDIA_TYPE, "Upload-Offset": "0"}
        assert too_many(await second.http.patch(url, content=update.body, headers=headers))


async def test_one_worker_leaves_places_to_the_others(start_server):
    server = await start_server(max_uploads_per_worker=1, max_uploads=2)
    greedy, honest = await server.enrol("greedy"), await server.enrol("honest")
    for _ in range(2):
        await server.a_run(cohort_size=2)
    await asyncio.gather(greedy.ask(), honest.ask())
    first, others = await greedy.assignment(), await honest.assignment()
    async with sending_update(server, greedy, first):
        second = await another_assignment(server, greedy, first)
        assert too_many((await refused_update(server, greedy, second))[2])
        _, _, answer = await refused_update(server, honest, others)
        assert answer.status_code == 200


async def another_assignment(server, worker, known):
    """An assignment of this worker in another run than the one it is asked about first."""
    async with server.stores.records.read() as connection:
        query = select(assignments.c.assignment_id).where(
            assignments.c.worker_id == worker.worker_id,
            assignments.c.assignment_id != known["assignment_id"],
        )
        assignment_id = (await connection.execute(query)).scalar_one()
    return (await worker.http.get(f"/v1/assignments/{assignment_id}")).json()


async def test_operators_share_the_total(start_server, message):
    server = await start_server(max_uploads=1)
    _, [(first, its), _] = await server.a_round()
    body = message("state", {"params": {"w": [1.0]}})
    url, headers = f"/v1/tensors/{digest_of([body])}", {"Content-Type": MEDIA_TYPE}
    async with sending_update(server, first, its):
        assert too_many(await server.operator.put(url, content=body, headers=headers))
    assert (await server.operator.put(url, content=body, headers=headers)).status_code == 201


async def test_waiting_requests_have_places(start_server):
    server = await start_server(max_waiting=1)
    first, second = await server.enrol("first"), await server.enrol("second")
    waiting = asyncio.create_task(first.ask(wait_s=30))
    await server.someone_listens(f"worker/{first.worker_id}")
    assert too_many(await second.ask(wait_s=30), "too-many-waiting")
    server.service.room.send_home()
    assert (await waiting).status_code == 204


def test_a_place_is_given_back_whatever_happens():
    places = Places(1, 1, TooManyUploads)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), places.one("w-1"):
            1 / 0  # noqa: B018
    assert places.taken == 0


def test_what_one_worker_is_refused_takes_no_place():
    places = Places(2, 1, TooManyUploads)
    with places.one("w-1"):
        for _ in range(5):
            with pytest.raises(TooManyUploads), places.one("w-1"):
                pass
        with places.one("w-2"), pytest.raises(TooManyUploads), places.one(None):
            pass
    assert places.taken == 0
