# SPDX-License-Identifier: Apache-2.0
"""A refused update is noted for the operator: by its code, for its own worker, until a good one comes."""

import asyncio

import numpy as np
import pytest

from protocol.errors import (
    OutsideBound,
    RoundClosed,
    StorageNotWritable,
    UnknownEncoding,
    UploadInterrupted,
)
from ps_service.standing import noting_refusals
from ps_service.storage import credential_records
from tests.ps_service.silence import standings


@pytest.fixture
async def server(start_server):
    """Nothing happens by itself: the tests perform what was asked for."""
    return await start_server(performing=False)


async def refused(server, worker, assignment, update, declared=None):
    """Send an update that is not taken; gives the code of its refusal."""
    answer = await worker.declare(assignment, declared or update.header)
    if answer.status_code == 201:
        answer = await worker.put(answer.json()["upload_url"], update.body)
    assert answer.status_code >= 400
    return answer.json()["code"]


def not_finite(server, assignment):
    delta = {"weight": np.full((2, 3), 0.001), "bias": np.array([0.001, np.nan, 0.001])}
    return server.an_update(assignment, bundles={"delta": delta})


def negative_hessian(server, assignment):
    hessian = {"weight": np.full((2, 3), -0.001), "bias": np.full(3, 0.001)}
    return server.an_update(assignment, bundles={"hessian": hessian})


def of_another_shape(server, assignment):
    return server.an_update(assignment, model={"weight": (3, 2), "bias": (3,)})


def damaged(server, assignment):
    update = server.an_update(assignment)
    return type(update)(update.header, update.body[:-1] + bytes([update.body[-1] ^ 1]))


def a_state(server, assignment):
    return server.an_update(assignment, kind="state")


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (not_finite, "not-finite"),
        (negative_hessian, "negative-hessian"),
        (of_another_shape, "shape-mismatch"),
        (damaged, "digest-mismatch"),
        (a_state, "malformed-tensor-message"),
    ],
)
async def test_a_body_that_is_refused_is_noted_until_a_good_one_comes(server, make, code):
    run_id, [(worker, assignment), _] = await server.a_round()
    assert await refused(server, worker, assignment, make(server, assignment)) == code
    assert (await standings(server, run_id))[0] == ("refused", code)

    await worker.send(assignment)
    assert (await standings(server, run_id))[0] == ("received", None)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"bundles": ["delta"]}, "bundle-mismatch"),
        ({"size_bytes": 1}, "size-mismatch"),
        ({"size_bytes": 2**40}, "message-too-large"),
    ],
)
async def test_a_declaration_that_is_refused_is_noted_until_a_good_one_comes(server, changes, code):
    run_id, cohort = await server.a_round()
    worker, assignment = cohort[0]
    update = server.an_update(assignment)
    assert await refused(server, worker, assignment, update, update.declared(**changes)) == code
    assert (await standings(server, run_id))[0] == ("refused", code)

    for each, given in cohort:
        await each.send(given)
    await server.aggregate_now()
    assert await standings(server, run_id) == [("counted", None)] * 2


async def test_the_last_refusal_of_several_is_told(server):
    run_id, [(worker, assignment), _] = await server.a_round()
    for make in (not_finite, negative_hessian):
        await refused(server, worker, assignment, make(server, assignment))
    assert (await standings(server, run_id))[0] == ("refused", "negative-hessian")


async def test_what_comes_at_the_wrong_time_is_no_refusal_of_the_update(server):
    run_id, cohort = await server.a_round(3, quorum=2)
    for worker, assignment in cohort[:2]:
        await worker.send(assignment)
    worker, assignment = cohort[0]
    conflict = server.an_update(assignment, 0.002)
    assert await refused(server, worker, assignment, conflict) == "update-conflict"
    worker, assignment = cohort[2]
    await server.operator.post(f"/v1/runs/{run_id}/rounds/1/aggregate")
    await server.aggregate_now()
    assert await refused(server, worker, assignment, server.an_update(assignment)) == "round-closed"
    assert await standings(server, run_id) == [("counted", None), ("counted", None), ("late", None)]


async def test_an_upload_that_is_cut_off_is_no_refusal(start_server):
    server = await start_server(performing=False, body_timeout_s=0.05)
    run_id, [(worker, assignment), _] = await server.a_round()
    update = server.an_update(assignment)
    url = (await worker.declare(assignment, update.header)).json()["upload_url"]

    async def falls_silent():
        yield update.body[:100]
        await asyncio.sleep(10)

    answer = await worker.put(url, falls_silent(), Content_Length=str(len(update.body)))
    assert answer.json()["code"] == "upload-interrupted"
    assert (await standings(server, run_id))[0] == ("asked", None)


async def test_a_refusal_of_another_s_assignment_notes_nothing(server):
    run_id, [(_, assignment), (other, _)] = await server.a_round()
    update = not_finite(server, assignment)
    assert await refused(server, other, assignment, update) == "not-found"
    assert await refused(server, other, assignment, update, update.declared(size_bytes=1)) == "not-found"
    assert await standings(server, run_id) == [("asked", None)] * 2


async def test_a_note_is_made_by_the_worker_of_the_assignment_alone(server):
    run_id, [(worker, assignment), (other, _)] = await server.a_round()
    for sender in (other, worker):
        assert await standings(server, run_id) == [("asked", None)] * 2
        async with server.stores.records.read() as connection:
            stored = await credential_records.worker_by_id(connection, sender.worker_id)
        with pytest.raises(OutsideBound):
            async with noting_refusals(server.service.note_refusal, stored, assignment["assignment_id"]):
                raise OutsideBound("too far")
    assert (await standings(server, run_id))[0] == ("refused", "outside-bound")


@pytest.mark.parametrize(
    "error", [RoundClosed("x"), UploadInterrupted("x"), StorageNotWritable("x"), ZeroDivisionError()]
)
async def test_only_what_is_wrong_with_the_update_itself_is_noted(server, error):
    run_id, [(worker, assignment), _] = await server.a_round()
    async with server.stores.records.read() as connection:
        stored = await credential_records.worker_by_id(connection, worker.worker_id)
    with pytest.raises(type(error)):
        async with noting_refusals(server.service.note_refusal, stored, assignment["assignment_id"]):
            raise error
    assert (await standings(server, run_id))[0] == ("asked", None)


async def full_disk(*_refusal):
    """Notes nothing."""
    raise StorageNotWritable("full")


async def test_a_refusal_is_told_to_its_worker_though_it_cannot_be_noted(server):
    _, [(worker, assignment), _] = await server.a_round()
    async with server.stores.records.read() as connection:
        stored = await credential_records.worker_by_id(connection, worker.worker_id)
    with pytest.raises(UnknownEncoding):
        async with noting_refusals(full_disk, stored, assignment["assignment_id"]):
            raise UnknownEncoding("f7")
