# SPDX-License-Identifier: Apache-2.0
"""Who proves what: enrolment, access tokens, keys that change, workers that wait, expire and are revoked."""

import asyncio
import base64
import json

import pytest

from protocol.assertions import Purpose, public_key_of, sign, thumbprint, use_of
from protocol.join_token import JoinToken
from tests.ps_service.conftest import Worker, key_of
from tests.ps_service.silence import pass_time


async def enrol_by(server, join_token, name="device", **changes):
    client = server.client(join_token)
    return await client.post("/v1/workers", json=server.enrolment(name, join_token, **changes))


def the_worker(server, answer, join_token, name="device"):
    return Worker(server, answer.json()["worker_id"], key_of(name), JoinToken.parse(join_token).server_id)


async def exchange(worker, assertion):
    url = f"/v1/workers/{worker.worker_id}/token"
    return await worker.server.client().post(url, json={"assertion": assertion})


async def listed(server, worker):
    workers = (await server.operator.get("/v1/workers")).json()["workers"]
    return next(each for each in workers if each["worker_id"] == worker.worker_id)


async def test_twenty_uses_and_fifty_devices_at_once_make_twenty_workers(start_server):
    server = await start_server(on_disk=True)
    token = await server.join_token(uses=20)
    answers = await asyncio.gather(*(enrol_by(server, token, f"device-{n}") for n in range(50)))
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [201] * 20 + [403] * 30
    assert len((await server.operator.get("/v1/workers")).json()["workers"]) == 20


async def test_what_proves_the_key_is_meant_for_one_server_one_token_and_one_purpose(server):
    token, other = await server.join_token(), await server.join_token()
    parsed = JoinToken.parse(token)
    public_key = public_key_of(key_of("device"))
    now_s = server.clock.now_ms() // 1000

    def proof(**changes):
        signed = {
            "private_key": key_of("device"),
            "purpose": Purpose.ENROL,
            "subject": thumbprint(public_key),
            "server_id": parsed.server_id,
            "now_s": now_s,
            "assertion_id": "x" * 16,
            "use": use_of(parsed.secret),
        }
        return sign(**signed | changes)

    for changes in [
        {"server_id": "0" * 16},
        {"use": use_of(JoinToken.parse(other).secret)},
        {"use": None},
        {"purpose": Purpose.TOKEN},
        {"private_key": key_of("somebody else")},
        {"subject": thumbprint(public_key_of(key_of("somebody else")))},
    ]:
        refused = await enrol_by(server, token, proof=proof(**changes))
        assert (refused.status_code, refused.json()["code"]) == (401, "assertion-refused"), changes
    for off_s in (-121, 61):
        skewed = await enrol_by(server, token, proof=proof(now_s=now_s + off_s))
        assert (skewed.status_code, skewed.json()["code"]) == (401, "clock-skewed")
        assert skewed.json()["server_ms"] == server.clock.now_ms()
    assert (await server.operator.get("/v1/workers")).json()["workers"] == []
    assert (await enrol_by(server, token, proof=proof())).status_code == 201


async def test_an_assertion_is_good_once(server):
    worker = await server.enrol("device")
    assertion = worker.sign()
    first, again = [await exchange(worker, assertion) for _ in range(2)]
    assert first.status_code == 200
    assert (again.status_code, again.json()["code"]) == (401, "assertion-refused")
    server.clock.advance(119_000)
    await server.service.enrolling.forget()
    assert (await exchange(worker, assertion)).json()["code"] == "assertion-refused"


async def test_an_assertion_is_good_once_also_if_it_comes_twice_at_once_or_after_a_change_of_keys(
    start_server,
):
    server = await start_server(on_disk=True)
    worker = await server.enrol("device")
    assertion = worker.sign()
    answers = await asyncio.gather(*(exchange(worker, assertion) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] + [401] * 7
    assert (await rotate(worker, key_of("device"))).status_code == 204
    assert (await exchange(worker, assertion)).json()["code"] == "assertion-refused"


@pytest.mark.parametrize("off_s", [-119, 59])
async def test_a_clock_may_be_a_minute_off(server, off_s):
    worker = await server.enrol("device")
    now_s = server.clock.now_ms() // 1000 + off_s
    assert (await exchange(worker, worker.sign(now_s=now_s))).status_code == 200


@pytest.mark.parametrize("off_s", [-3600, -121, 61, 3600])
async def test_a_device_whose_clock_is_off_is_told_the_time(server, off_s):
    worker = await server.enrol("device")
    refused = await exchange(worker, worker.sign(now_s=server.clock.now_ms() // 1000 + off_s))
    assert (refused.status_code, refused.json()["code"]) == (401, "clock-skewed")
    told_s = refused.json()["server_ms"] // 1000
    assert (await exchange(worker, worker.sign(now_s=told_s))).status_code == 200


async def test_nobody_signs_for_another(server):
    worker, other = await server.enrol("device"), await server.enrol("other")
    for assertion in (
        worker.sign(private_key=other.private_key),
        worker.sign(subject=other.worker_id),
        worker.sign(server_id="0" * 16),
        worker.sign(purpose=Purpose.ENROL),
        other.sign(),
    ):
        refused = await exchange(worker, assertion)
        assert (refused.status_code, refused.json()["code"]) == (401, "assertion-refused")


async def test_what_is_not_signed_is_refused(server):
    worker = await server.enrol("device")
    _, claims, signature = worker.sign().split(".")

    def header(**fields):
        packed = json.dumps({"typ": Purpose.TOKEN.value} | fields).encode()
        return base64.urlsafe_b64encode(packed).rstrip(b"=").decode()

    for assertion in (
        f"{header(alg='none')}.{claims}.",
        f"{header(alg='HS256')}.{claims}.{signature}",
        f"{header(alg='Ed25519')}.{claims}.{signature}",  # signed with another header
        f"{claims}.{signature}",
        "...",
        "x",
    ):
        refused = await exchange(worker, assertion)
        assert (refused.status_code, refused.json()["code"]) == (401, "assertion-refused"), assertion


async def test_an_access_token_lives_minutes(start_server):
    server = await start_server(access_token_s=60)
    worker = await server.enrol("device")
    client = server.client(await worker.token())
    beat = f"/v1/workers/{worker.worker_id}/heartbeat"
    server.clock.advance(59_999)
    assert (await client.post(beat, json={})).status_code == 204
    server.clock.advance(1)
    refused = await client.post(beat, json={})
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")
    await server.service.enrolling.forget()


async def rotate(worker, new_key, proof=None, consent=None):
    """Ask for a new key; `proof` and `consent` replace parts of what is signed."""
    public_key = public_key_of(new_key)
    signed = {"purpose": Purpose.ROTATE, "private_key": new_key}
    agreed = {"purpose": Purpose.ROTATE, "use": thumbprint(public_key)}
    rotation = {
        "public_key": public_key,
        "proof": worker.sign(**signed | (proof or {})),
        "consent": worker.sign(**agreed | (consent or {})),
    }
    return await worker.http.post(f"/v1/workers/{worker.worker_id}/key", json=rotation)


async def test_a_new_key_takes_the_place_of_the_old_one_at_once(server):
    worker = await server.enrol("device")
    before = server.client(await worker.token())
    old_key, worker.auth.token = worker.private_key, None
    assert (await rotate(worker, key_of("new"))).status_code == 204
    beat = f"/v1/workers/{worker.worker_id}/heartbeat"
    assert (await before.post(beat, json={})).status_code == 401
    assert (await exchange(worker, worker.sign(private_key=old_key))).json()["code"] == "assertion-refused"
    assert (await exchange(worker, worker.sign(private_key=key_of("new")))).status_code == 200


async def test_a_new_key_must_be_proved_and_be_nobody_elses(server):
    worker, other = await server.enrol("device"), await server.enrol("other")
    unproved = await rotate(worker, key_of("new"), proof={"private_key": worker.private_key})
    assert (unproved.status_code, unproved.json()["code"]) == (401, "assertion-refused")
    taken = await rotate(worker, other.private_key)
    assert (taken.status_code, taken.json()["code"]) == (409, "update-conflict")
    assert (await exchange(worker, worker.sign())).status_code == 200


async def test_who_has_stolen_an_access_token_changes_no_key(server):
    worker = await server.enrol("device")
    consents = [
        {"private_key": key_of("thief's")},
        {"use": None},
        {"use": thumbprint(public_key_of(key_of("the worker's own choice")))},
        {"purpose": Purpose.TOKEN},
        {"server_id": "0" * 16},
    ]
    for consent in consents:
        refused = await rotate(worker, key_of("thief's"), consent=consent)
        assert (refused.status_code, refused.json()["code"]) == (401, "assertion-refused"), consent
    assert (await exchange(worker, worker.sign())).status_code == 200


async def test_what_the_old_key_s_tokens_began_ends_with_them(server):
    await server.a_run(cohort_size=2)
    worker = await server.enrol("device")
    await worker.ask()
    waiting = asyncio.create_task(worker.ask(wait_s=600))
    await server.someone_listens(f"worker/{worker.worker_id}")
    assert (await rotate(worker, key_of("new"))).status_code == 204
    assert (await asyncio.wait_for(waiting, 10)).status_code == 204


async def test_a_worker_that_is_to_be_approved_waits_for_an_operator(server):
    token = await server.join_token(approve=True)
    answer = await enrol_by(server, token)
    assert answer.json()["waiting"]
    worker = the_worker(server, answer, token)
    pending = await exchange(worker, worker.sign())
    assert (pending.status_code, pending.json()["code"]) == (403, "approval-pending")
    assert pending.json()["retryable"]
    assert pending.headers["retry-after"] == "5"
    assert (await listed(server, worker))["approved_ms"] is None
    assert (await enrol_by(server, token)).json()["waiting"], "to enrol again is no way around it"
    approve = f"/v1/workers/{worker.worker_id}/approve"
    for _ in range(2):
        assert (await server.operator.post(approve)).status_code == 204
    assert (await exchange(worker, worker.sign())).status_code == 200
    assert (await server.operator.post("/v1/workers/w-none/approve")).status_code == 404


async def test_a_worker_of_one_run_takes_part_in_no_other(server):
    mine, other = await server.a_run(cohort_size=1), await server.a_run(cohort_size=1)
    for role, url in (("trainer", None), ("evaluator", f"/v1/runs/{other.run_id}/metrics")):
        token = await server.join_token(run_id=mine.run_id, role=role)
        worker = the_worker(server, await enrol_by(server, token, role), token, role)
        await worker.ask()
        if url:
            report = {"version": 0, "num_examples": 1, "metrics": {"accuracy": 1.0}}
            assert (await worker.http.post(url, json=report)).status_code == 404
        else:
            assert (await worker.assignment())["run_id"] == mine.run_id
    assert (await server.show(other.run_id)).members == 0
    missing = await server.operator.post("/v1/tokens", json={"run_id": "run-none"})
    assert missing.status_code == 404


async def test_an_idle_worker_expires_gives_its_use_back_and_may_come_again(start_server):
    server = await start_server(performing=False)
    token = await server.join_token(uses=1, idle_s=60)
    worker = the_worker(server, await enrol_by(server, token), token)
    assert (await worker.ask()).status_code == 204
    assert (await enrol_by(server, token, "another")).json()["code"] == "join-token-refused"
    await pass_time(server, 180)
    assert (await listed(server, worker))["expired_ms"] is not None
    gone = await exchange(worker, worker.sign())
    assert (gone.status_code, gone.json()["code"]) == (403, "worker-expired")
    again = await enrol_by(server, token)
    assert again.json()["worker_id"] == worker.worker_id
    assert (await exchange(worker, worker.sign())).status_code == 200
    assert (await enrol_by(server, token, "another")).json()["code"] == "join-token-refused"


async def test_a_worker_that_is_heard_of_does_not_expire(start_server):
    server = await start_server(performing=False)
    token = await server.join_token(idle_s=60)
    worker = the_worker(server, await enrol_by(server, token), token)
    for _ in range(4):
        await pass_time(server, 20)
        assert (await worker.ask()).status_code == 204
    assert (await listed(server, worker))["expired_ms"] is None


async def test_a_join_token_that_was_revoked_opens_nothing(server):
    issued = (await server.operator.post("/v1/tokens", json={"uses": 9})).json()
    for _ in range(2):
        assert (await server.operator.delete(f"/v1/tokens/{issued['token_id']}")).status_code == 204
    refused = await enrol_by(server, issued["join_token"])
    assert (refused.status_code, refused.json()["code"]) == (403, "join-token-refused")
    [row] = (await server.operator.get("/v1/tokens")).json()["tokens"]
    assert (row["token_id"], row["uses_left"], row["revoked_ms"]) == (
        issued["token_id"],
        9,
        server.clock.now_ms(),
    )
    assert (await server.operator.delete("/v1/tokens/t-none")).status_code == 404


async def a_key(server, *scopes, **wanted):
    answer = await server.operator.post("/v1/keys", json={"label": "ci", "scopes": scopes} | wanted)
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    return answer.json()


async def test_a_key_does_what_it_was_made_for_and_nothing_else(server):
    reader = server.client((await a_key(server, "runs:read"))["operator_key"])
    assert (await reader.get("/v1/runs")).status_code == 200
    for method, url in (
        ("POST", "/v1/runs"),
        ("GET", "/v1/workers"),
        ("GET", "/metrics"),
        ("GET", "/v1/keys"),
    ):
        refused = await reader.request(method, url, json={})
        assert (refused.status_code, refused.json()["code"]) == (403, "missing-scope"), url
    writer = server.client((await a_key(server, "workers:write"))["operator_key"])
    assert (await writer.get("/v1/workers")).status_code == 200
    assert (await writer.get("/v1/runs")).status_code == 403


async def test_no_key_gives_or_takes_more_than_it_has(server):
    maker = server.client((await a_key(server, "keys:write", "runs:write"))["operator_key"])
    made = await maker.post("/v1/keys", json={"label": "mine", "scopes": ["runs:read", "runs:write"]})
    assert made.status_code == 201
    refused = await maker.post("/v1/keys", json={"label": "mine", "scopes": ["workers:read"]})
    assert (refused.status_code, refused.json()["code"]) == (403, "missing-scope")
    assert (await maker.delete(f"/v1/keys/{made.json()['key_id']}")).status_code == 204
    keys = (await maker.get("/v1/keys")).json()["keys"]
    everything = next(key for key in keys if key["label"] == "test")
    assert (await maker.delete(f"/v1/keys/{everything['key_id']}")).json()["code"] == "missing-scope"
    assert (await maker.delete("/v1/keys/k-none")).status_code == 404


async def test_a_key_ends_when_it_is_revoked_or_its_time_is_over(server):
    short = await a_key(server, "runs:read", expires_s=10)
    revoked = await a_key(server, "runs:read")
    await server.operator.delete(f"/v1/keys/{revoked['key_id']}")
    assert (await server.client(revoked["operator_key"]).get("/v1/runs")).status_code == 401
    client = server.client(short["operator_key"])
    server.clock.advance(9_999)
    assert (await client.get("/v1/runs")).status_code == 200
    server.clock.advance(1)
    assert (await client.get("/v1/runs")).status_code == 401


async def test_a_worker_that_signs_all_the_time_keeps_nobody_from_writing(server):
    token = await server.join_token()
    worker = the_worker(server, await enrol_by(server, token, "busy"), token, "busy")
    other = await server.enrol("calm")

    async def signs():
        return await exchange(worker, worker.sign())

    async def enrols():
        return await enrol_by(server, token, "busy")

    for ask in (signs, enrols):
        for _ in range(60):
            assert (await ask()).status_code == 200
        refused = await ask()
        assert (refused.status_code, refused.json()["code"]) == (429, "too-many-requests")
        forged = await exchange(worker, worker.sign(private_key=other.private_key))
        assert forged.status_code == 401, "only who has the key is counted"
        assert (await exchange(other, other.sign())).status_code == 200
        server.clock.advance(60_000)


async def test_who_only_guesses_keeps_nobody_from_writing(start_server):
    """While another transaction writes, a guess is answered: it takes no part in the queue of writers."""
    server = await start_server(on_disk=True)
    worker, token = await server.enrol("device"), await server.join_token()
    unknown = "fsj_" + "g" * 43 + "." + worker.server_id
    async with server.stores.records.write(), asyncio.timeout(10):
        guesses = [
            await exchange(worker, worker.sign(private_key=key_of("somebody else"))),
            await server.client().post("/v1/workers/w-none/token", json={"assertion": worker.sign()}),
            await enrol_by(server, unknown),
            await enrol_by(server, token, proof="x.y.z"),
        ]
    assert [answer.status_code for answer in guesses] == [401, 401, 403, 401]
