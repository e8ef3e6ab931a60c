# SPDX-License-Identifier: Apache-2.0
"""An update is declared, sent and acknowledged; what is refused leaves everything as it was."""

import asyncio

import numpy as np
import pytest

from protocol.codec import digest_of


async def declared_url(worker, assignment, header):
    answer = await worker.declare(assignment, header)
    assert answer.status_code == 201, answer.text
    return answer.json()["upload_url"]


async def pieces(body, size_bytes=1):
    for start in range(0, len(body), size_bytes):
        yield body[start : start + size_bytes]


async def test_declare_send_receipt(server):
    run_id, [(worker, assignment), _] = await server.a_round()
    update = server.an_update(assignment)
    offer = (await worker.declare(assignment, update.header)).json()
    assert (await worker.declare(assignment, update.header)).json() == offer
    head = await worker.http.head(offer["upload_url"])
    assert (head.status_code, head.headers["upload-offset"]) == (204, "0")
    assert head.headers["upload-length"] == str(len(update.body))

    receipt = (await worker.put(offer["upload_url"], update.body)).json()

    assert (receipt["digest"], receipt["outcome"]) == (update.header["digest"], "pending")
    assert (await worker.http.head(offer["upload_url"])).headers["upload-offset"] == str(len(update.body))
    url = f"/v1/assignments/{assignment['assignment_id']}/update"
    assert (await server.operator.get(url)).json() == receipt
    [round_] = await server.rounds(run_id)
    assert (round_["admitted"], round_["bytes_up"]) == (1, len(update.body))


async def test_the_same_update_again_is_the_same_receipt_also_after_the_round(server):
    run_id, cohort = await server.a_round()
    worker, assignment = cohort[0]
    update = server.an_update(assignment)
    url = await declared_url(worker, assignment, update.header)
    first = (await worker.put(url, update.body)).json()
    assert (await worker.put(url, update.body)).json() == first
    await cohort[1][0].send(cohort[1][1])
    await server.aggregate_now()

    again = await worker.declare(assignment, update.header)
    assert again.status_code == 200
    assert again.json() == first | {"outcome": "counted", "version": 1}
    assert (await worker.put(url, update.body)).json() == again.json()
    assert (await server.rounds(run_id))[0]["admitted"] == 2


async def test_another_update_after_the_receipt_is_a_conflict(server):
    _, [(worker, assignment), _] = await server.a_round()
    await worker.send(assignment)
    before = await server.inventory()
    answer = await worker.declare(assignment, server.an_update(assignment, 0.002).header)
    assert (answer.status_code, answer.json()["code"]) == (409, "update-conflict")
    assert await server.inventory() == before


async def test_before_the_body_is_held_another_update_may_be_declared_instead(server):
    _, [(worker, assignment), _] = await server.a_round()
    first, second = server.an_update(assignment), server.an_update(assignment, 0.002)
    old_url = await declared_url(worker, assignment, first.header)
    new_url = await declared_url(worker, assignment, second.header)
    assert (await worker.put(old_url, first.body)).status_code == 404
    assert (await worker.put(new_url, second.body)).json()["digest"] == second.header["digest"]


async def test_the_same_body_declared_with_other_numbers_is_another_upload(server):
    _, [(worker, assignment), _] = await server.a_round()
    update = server.an_update(assignment)
    first, same, other = [
        (await worker.declare(assignment, update.declared(num_examples=n))).json()["upload_url"]
        for n in (10, 10, 11)
    ]
    assert first == same != other
    assert (await worker.put(first, update.body)).status_code == 404
    assert (await worker.put(other, update.body)).status_code == 200


async def test_a_body_is_dropped_if_another_update_was_declared_while_it_travelled(server):
    _, [(worker, assignment), _] = await server.a_round()
    first, second = server.an_update(assignment), server.an_update(assignment, 0.002)
    url = await declared_url(worker, assignment, first.header)

    async def overtaken():
        yield first.body[:10]
        await declared_url(worker, assignment, second.header)
        yield first.body[10:]

    answer = await worker.put(url, overtaken(), Content_Length=str(len(first.body)))
    assert (answer.status_code, answer.json()["code"]) == (408, "upload-interrupted")
    assert (await server.inventory())[0]["updates"] == 0


@pytest.mark.parametrize("encodings", [{}, {"delta": "bf16", "hessian": "f16"}])
@pytest.mark.parametrize("size_bytes", [1, 7])
async def test_a_body_may_come_in_pieces_that_split_elements(server, size_bytes, encodings):
    _, [(worker, assignment), _] = await server.a_round(encodings=encodings)
    update = server.an_update(assignment)
    url = await declared_url(worker, assignment, update.header)
    answer = await worker.put(url, pieces(update.body, size_bytes), Content_Length=str(len(update.body)))
    assert answer.status_code == 200, answer.text


async def test_empty_and_0d_tensors_travel(server):
    model = {"scale": (), "nothing": (0, 4), "weight": (5,)}
    run_id, cohort = await server.a_round(model=model)
    for worker, assignment in cohort:
        await worker.send(assignment, server.an_update(assignment, model=model))
    await server.aggregate_now()
    assert (await server.show(run_id)).version == 1


@pytest.mark.parametrize("element_split", [True, False])
async def test_a_bad_value_is_found_wherever_the_pieces_end(server, element_split):
    _, [(worker, assignment), _] = await server.a_round()
    delta = {"weight": np.full((2, 3), 0.001), "bias": np.array([0.001, 0.001, np.nan])}
    update = server.an_update(assignment, bundles={"delta": delta})
    url = await declared_url(worker, assignment, update.header)
    body = pieces(update.body, 3 if element_split else 4096)
    answer = await worker.put(url, body, Content_Length=str(len(update.body)))
    assert (answer.status_code, answer.json()["code"]) == (422, "not-finite")


MANY = 0.005
REFUSED_BODIES = {
    "a body whose values lie outside the bound": (
        "outside-bound",
        lambda u, a: u.an_update(a, 1.0, bundles={"hessian": values(MANY)}),
    ),
    "NaN": ("not-finite", lambda u, a: u.an_update(a, bundles={"delta": values(np.nan)})),
    "infinity": ("not-finite", lambda u, a: u.an_update(a, bundles={"delta": values(np.inf)})),
    "minus infinity": ("not-finite", lambda u, a: u.an_update(a, bundles={"delta": values(-np.inf)})),
    "an infinite hessian": ("not-finite", lambda u, a: u.an_update(a, bundles={"hessian": values(np.inf)})),
    "a negative hessian": ("negative-hessian", lambda u, a: u.an_update(a, bundles={"hessian": values(-1)})),
    "another order of tensors": (
        "shape-mismatch",
        lambda u, a: u.an_update(a, bundles={"delta": dict(reversed(values(MANY).items()))}),
    ),
    "another shape": (
        "shape-mismatch",
        lambda u, a: u.an_update(a, bundles={"delta": values(MANY) | {"weight": np.full((3, 2), MANY)}}),
    ),
    "another name": (
        "shape-mismatch",
        lambda u, a: u.an_update(
            a, bundles={"delta": {"weight": np.full((2, 3), MANY), "b": np.full(3, MANY)}}
        ),
    ),
    "a state message": ("malformed-tensor-message", lambda u, a: u.an_update(a, kind="state")),
    "another encoding than declared": (
        "bundle-mismatch",
        lambda u, a: another_encoding(u, a),
    ),
    "the digest of something else": ("digest-mismatch", lambda u, a: u.an_update(a, digest="0" * 64)),
    "no tensor message at all": ("malformed-tensor-message", lambda u, a: no_message(u, a)),
    "zeros after the end": ("malformed-tensor-message", lambda u, a: longer(u, a)),
    "a message that ends early": ("truncated-tensor-message", lambda u, a: shorter(u, a)),
}


def values(value):
    return {"weight": np.full((2, 3), value), "bias": np.full(3, value)}


def another_body(update, body):
    header = update.declared(digest=digest_of([body]), size_bytes=len(body))
    return type(update)(header, body)


def another_encoding(server, assignment):
    update = server.an_update(assignment)
    sent = server.an_update(assignment | {"encodings": {"delta": "bf16", "hessian": "f32"}})
    return another_body(update, sent.body)


def no_message(server, assignment):
    update = server.an_update(assignment)
    return another_body(update, b"\x00" * len(update.body))


def longer(server, assignment):
    update = server.an_update(assignment)
    return another_body(update, update.body + b"\x00" * 8)


def shorter(server, assignment):
    update = server.an_update(assignment)
    return another_body(update, update.body[:-4])


@pytest.mark.parametrize("what", REFUSED_BODIES)
async def test_a_refused_body_changes_nothing_and_may_be_sent_again(server, what):
    code, bad = REFUSED_BODIES[what]
    _, [(worker, assignment), _] = await server.a_round()
    update = bad(server, assignment)
    url = await declared_url(worker, assignment, update.header)
    before = await server.inventory()
    answer = await worker.put(url, update.body)
    assert answer.json()["code"] == code, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert await server.inventory() == before
    await worker.send(assignment)


REFUSED_REQUESTS = {
    "half a body": (400, "size-mismatch", lambda body: (body[:100], {"Content_Length": str(len(body))})),
    "a byte more than announced": (
        400,
        "size-mismatch",
        lambda body: (pieces(body + b"x", 50), {"Content_Length": str(len(body))}),
    ),
    "another length than declared": (400, "size-mismatch", lambda body: (body + b"x", {})),
    "no length": (411, "length-required", lambda body: (pieces(body, 64), {})),
    "an absurd length": (411, "length-required", lambda body: (pieces(body), {"Content_Length": "9" * 5000})),
    "JSON": (415, "unsupported-media-type", lambda body: (body, {"Content_Type": "application/json"})),
}


@pytest.mark.parametrize("what", REFUSED_REQUESTS)
async def test_a_request_that_does_not_announce_the_body_is_refused(server, what):
    status, code, request = REFUSED_REQUESTS[what]
    _, [(worker, assignment), _] = await server.a_round()
    update = server.an_update(assignment)
    url = await declared_url(worker, assignment, update.header)
    before = await server.inventory()
    content, headers = request(update.body)
    answer = await worker.put(url, content, **headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert await server.inventory() == before
    assert (await worker.put(url, update.body)).status_code == 200


async def test_a_body_that_falls_silent_is_given_up(start_server):
    server = await start_server(body_timeout_s=0.05)
    _, [(worker, assignment), _] = await server.a_round()
    update = server.an_update(assignment)
    url = await declared_url(worker, assignment, update.header)

    async def falling_silent():
        yield update.body[:100]
        await asyncio.Event().wait()

    async with asyncio.timeout(10):
        answer = await worker.put(url, falling_silent(), Content_Length=str(len(update.body)))
    assert (answer.status_code, answer.json()["code"]) == (408, "upload-interrupted")
    assert (await server.inventory())[0]["updates"] == 0
    assert (await worker.put(url, update.body)).status_code == 200


REFUSED_DECLARATIONS = {
    "bundles left out": ("bundle-mismatch", {"bundles": ["delta"], "encodings": {"delta": "f32"}}),
    "bundles turned round": ("bundle-mismatch", {"bundles": ["hessian", "delta"]}),
    "other encodings": ("bundle-mismatch", {"encodings": {"delta": "bf16", "hessian": "f32"}}),
    "encodings left out": ("bundle-mismatch", {"encodings": {"delta": "f32"}}),
    "unknown encodings": ("bundle-mismatch", {"encodings": {"delta": "f33", "hessian": "f32"}}),
    "too many local steps": ("bundle-mismatch", {"local_steps": 11}),
    "no local steps": ("invalid-message", {"local_steps": 0}),
    "too small": ("size-mismatch", {"size_bytes": 20}),
    "too large for this model": ("size-mismatch", {"size_bytes": 50_000_000}),
    "too large for this server": ("message-too-large", {"size_bytes": 2**40}),
    "no digest": ("invalid-message", {"digest": "../../etc/passwd"}),
    "a field nobody knows": ("invalid-message", {"surprise": 1}),
    "an infinite metric": ("invalid-message", {"metrics": {"train_loss": "Infinity"}}),
    "too many examples": ("invalid-message", {"num_examples": 10_000_001}),
    "a later schema": ("invalid-message", {"schema_version": 2}),
}


async def test_a_refused_declaration_changes_nothing(server):
    _, [(worker, assignment), _] = await server.a_round()
    before = await server.inventory()
    for what, (code, changes) in REFUSED_DECLARATIONS.items():
        answer = await worker.declare(assignment, server.an_update(assignment).declared(**changes))
        assert answer.json()["code"] == code, (what, answer.text)
        assert await server.inventory() == before, what


async def test_fewer_local_steps_have_a_tighter_bound(server):
    _, [(worker, assignment), _] = await server.a_round(local_steps=10)
    update = server.an_update(assignment, 0.03, local_steps=1)  # R = 0.04 for ten steps, 0.004 for one
    url = await declared_url(worker, assignment, update.header)
    assert (await worker.put(url, update.body)).json()["code"] == "outside-bound"


async def test_unknown_assignments_and_uploads_are_not_found(server):
    worker = await server.enrol("worker")
    _, [(_, assignment), _] = await server.a_round()
    for answer in (
        await worker.declare({"assignment_id": "a-nothing"}, server.an_update(assignment).header),
        await worker.put("/v1/uploads/u-nothing", b"x"),
        await worker.http.get("/v1/assignments/a-nothing"),
        await worker.http.get("/v1/assignments/a-nothing/update"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "not-found")
    assert (await worker.http.head("/v1/uploads/u-nothing")).status_code == 404


async def test_a_closed_round_takes_nothing_more(server):
    run_id, cohort = await server.a_round()
    late_worker, late_assignment = cohort[1]
    update = server.an_update(late_assignment)
    url = await declared_url(late_worker, late_assignment, update.header)
    await cohort[0][0].send(cohort[0][1])
    await server.operator.post(f"/v1/runs/{run_id}/rounds/1/aggregate")
    await server.aggregate_now()
    before = await server.inventory()
    for answer in (
        await late_worker.put(url, update.body),
        await late_worker.declare(late_assignment, update.header),
    ):
        assert (answer.status_code, answer.json()["code"]) == (409, "round-closed")
    assert await server.inventory() == before
    receipt = await late_worker.http.get(f"/v1/assignments/{late_assignment['assignment_id']}/update")
    assert receipt.status_code == 404


async def test_a_worker_revoked_while_its_body_travels_is_not_counted(server):
    run_id, [(worker, assignment), _] = await server.a_round()
    update = server.an_update(assignment)
    url = await declared_url(worker, assignment, update.header)

    async def revoked_on_the_way():
        yield update.body[:10]
        await server.operator.delete(f"/v1/workers/{worker.worker_id}")
        yield update.body[10:]

    answer = await worker.put(url, revoked_on_the_way(), Content_Length=str(len(update.body)))
    assert (answer.status_code, answer.json()["code"]) == (403, "worker-revoked")
    assert (await server.rounds(run_id))[0]["admitted"] == 0
