# SPDX-License-Identifier: Apache-2.0
"""Closed by default: who may do what, and that nobody learns a secret from an answer."""

import asyncio
import stat

import pytest
from fastapi.routing import APIRoute

from protocol.join_token import JoinToken
from ps_service.routes import ROUTERS

OPEN = {"/healthz", "/readyz", "/v1/ca"}
PROVES_ITSELF = "/v1/workers/{worker_id}/token"
"""What it takes is a credential."""
PATH = {
    "worker_id": "w-1",
    "assignment_id": "a-1",
    "upload_id": "u-1",
    "digest": "0" * 64,
    "run_id": "run-1",
    "round": "1",
    "token_id": "t-1",
    "key_id": "k-1",
}


def every_endpoint(server):
    routes = [route for make in ROUTERS for route in make(server.service).routes]
    assert all(isinstance(route, APIRoute) for route in routes)
    return [
        (method, route.path, route.path.format(**PATH))
        for route in routes
        for method in sorted(route.methods)
    ]


@pytest.mark.parametrize("credential", [None, "", "Bearer", "Bearer  ", "Basic b3A6a2V5", "Bearer fso_wrong"])
@pytest.mark.parametrize("body", [None, {"surprise": 1}])
async def test_everything_is_closed_without_a_credential(server, credential, body):
    """Also before a body is judged: a stranger does not learn what it should have been."""
    headers = {} if credential is None else {"Authorization": credential}
    endpoints = every_endpoint(server)
    assert len(endpoints) > 20
    for method, path, url in endpoints:
        answer = await server.client().request(method, url, headers=headers, json=body)
        wrong_token = (method, path) == ("POST", "/v1/workers") and credential == "Bearer fso_wrong"
        if path in OPEN:
            assert answer.status_code == (404 if path == "/v1/ca" else 200)  # none is advertised here
        elif path == PROVES_ITSELF:
            assert answer.status_code == 422
        elif wrong_token:
            assert answer.status_code in (403, 422)
        else:
            assert answer.status_code == 401, (method, path, answer.text)
            assert answer.headers["www-authenticate"] == "Bearer"


async def test_a_key_in_the_address_opens_nothing(server):
    key = server.operator.headers["authorization"].removeprefix("Bearer ")
    for url in (f"/v1/runs?token={key}", f"/v1/runs?access_token={key}"):
        assert (await server.client().get(url)).status_code == 401


async def test_a_worker_cannot_do_what_operators_do(server):
    run_id, [(worker, _), _] = await server.a_round()
    for method, url in [
        ("POST", "/v1/tokens"),
        ("GET", "/v1/workers"),
        ("DELETE", f"/v1/workers/{worker.worker_id}"),
        ("PUT", f"/v1/tensors/{'0' * 64}"),
        ("POST", "/v1/runs"),
        ("GET", "/v1/runs"),
        ("POST", f"/v1/runs/{run_id}/cancel"),
        ("GET", f"/v1/runs/{run_id}/rounds"),
        ("POST", f"/v1/runs/{run_id}/rounds/1/aggregate"),
        ("GET", f"/v1/runs/{run_id}/versions"),
        ("POST", f"/v1/runs/{run_id}/metrics"),
        ("GET", f"/v1/runs/{run_id}/events"),
        ("GET", "/metrics"),
    ]:
        report = {"version": 0, "num_examples": 1, "metrics": {"accuracy": 1}}
        body = report if url.endswith("/metrics") and method == "POST" else {}
        answer = await worker.http.request(method, url, json=body)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), (method, url)


async def test_an_operator_cannot_do_what_workers_do(server):
    _, [(worker, assignment), _] = await server.a_round()
    a = f"/v1/assignments/{assignment['assignment_id']}"
    for method, url, body in [
        ("GET", f"/v1/workers/{worker.worker_id}/assignment", None),
        ("POST", f"/v1/workers/{worker.worker_id}/heartbeat", {}),
        ("POST", f"{a}/update", server.an_update(assignment).header),
        ("POST", f"{a}/decline", {"reason": "mine"}),
        ("PUT", "/v1/uploads/u-1", {}),
        ("HEAD", "/v1/uploads/u-1", None),
    ]:
        assert (await server.operator.request(method, url, json=body)).status_code == 403, (method, url)


async def test_a_worker_touches_only_what_is_its_own(server):
    _, [(owner, assignment), (other, _)] = await server.a_round()
    update = server.an_update(assignment)
    upload_url = (await owner.declare(assignment, update.header)).json()["upload_url"]
    a = f"/v1/assignments/{assignment['assignment_id']}"
    before = await server.inventory()
    for method, url, body, status in [
        ("GET", a, None, 404),
        ("GET", f"{a}/update", None, 404),
        ("POST", f"{a}/update", update.header, 404),
        ("POST", f"{a}/decline", {"reason": "mine now"}, 404),
        ("HEAD", upload_url, None, 404),
        ("GET", f"/v1/workers/{owner.worker_id}/assignment", None, 403),
        ("POST", f"/v1/workers/{owner.worker_id}/heartbeat", {}, 403),
    ]:
        assert (await other.http.request(method, url, json=body)).status_code == status, (method, url)
    assert (await other.put(upload_url, update.body)).status_code == 404
    assert await server.inventory() == before
    await owner.send(assignment, update)


class Device:
    """Enrols as devices of several names, by one join token."""

    def __init__(self, server, join_token):
        self.server, self.join_token = server, join_token

    async def enrol(self, number=0, **changes):
        said = self.server.enrolment(f"worker-{number}", self.join_token, **changes)
        return await self.server.client(self.join_token).post("/v1/workers", json=said)


async def a_device(server, **wanted):
    return Device(server, await server.join_token(**wanted))


async def test_a_join_token_has_only_so_many_uses(server):
    device = await a_device(server, uses=2)
    statuses = [(await device.enrol(number)).status_code for number in range(3)]
    assert statuses == [201, 201, 403]
    assert len((await server.operator.get("/v1/workers")).json()["workers"]) == 2


async def test_devices_that_come_together_cannot_share_one_use(server):
    device = await a_device(server, uses=1)
    answers = await asyncio.gather(*(device.enrol(number) for number in range(5)))
    assert sorted(answer.status_code for answer in answers) == [201, 403, 403, 403, 403]


async def test_enrolling_again_with_the_same_key_is_the_same_worker_and_uses_up_nothing(server):
    device = await a_device(server, uses=1)
    first, again = [await device.enrol() for _ in range(2)]
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()


async def test_a_later_enrolment_says_the_name_and_the_tasks_anew(server):
    device = await a_device(server, uses=1)
    first = await device.enrol()
    again = await device.enrol(name="renamed", tasks=["other", "digits"])
    assert again.json() == first.json()
    [worker] = (await server.operator.get("/v1/workers")).json()["workers"]
    assert (worker["name"], worker["tasks"]) == ("renamed", ["other", "digits"])


async def test_no_token_changes_the_role_of_a_worker(server):
    trainers = await a_device(server)
    evaluators = await a_device(server, role="evaluator")
    await trainers.enrol()
    refused = await evaluators.enrol(name="renamed")
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    [worker] = (await server.operator.get("/v1/workers")).json()["workers"]
    assert (worker["name"], worker["role"]) == ("worker-0", "trainer")


async def test_no_cache_keeps_a_join_token(server):
    answer = await server.operator.post("/v1/tokens", json={})
    assert answer.headers["cache-control"] == "no-store"


async def test_a_join_token_expires(server):
    device = await a_device(server, expires_s=10)
    server.clock.advance(9_999)
    assert (await device.enrol(1)).status_code == 201
    server.clock.advance(1)
    answer = await device.enrol(2)
    assert (answer.status_code, answer.json()["code"]) == (403, "join-token-refused")


async def test_a_join_token_opens_enrolment_only(server):
    device = await a_device(server)
    client = server.client(device.join_token)
    assert (await client.get("/v1/runs")).status_code == 401
    assert (await client.post("/v1/tokens", json={})).status_code == 401


async def test_a_device_cannot_choose_its_role(server):
    device = await a_device(server, role="trainer")
    assert (await device.enrol(role="evaluator")).status_code == 422
    enrolled = await device.enrol()
    assert enrolled.json()["role"] == "trainer"


async def test_a_worker_of_another_protocol_is_told_so(server):
    device = await a_device(server)
    answer = await device.enrol(protocol_min=2, protocol_max=3)
    assert answer.json()["code"] == "unsupported-version"


async def test_a_revoked_worker_is_shut_out_at_once_and_cannot_come_back(server):
    _, [(worker, assignment), _] = await server.a_round()
    for _ in range(2):
        answer = await server.operator.delete(f"/v1/workers/{worker.worker_id}")
        assert answer.status_code == 204
    for answer in (
        await worker.ask(),
        await worker.declare(assignment, server.an_update(assignment).header),
        await worker.http.get(f"/v1/runs/{assignment['run_id']}/tensors/{assignment['tensors']['params']}"),
        await (await a_device(server)).enrol(0),
    ):
        assert (answer.status_code, answer.json()["code"]) == (403, "worker-revoked")
    assert (await server.operator.delete("/v1/workers/w-nothing")).status_code == 404


async def test_a_worker_revoked_while_it_waits_is_told_at_once(server):
    worker = await server.enrol("worker")
    async with asyncio.timeout(10):
        asking = asyncio.create_task(worker.ask(wait_s=60))
        await server.someone_listens(f"worker/{worker.worker_id}")
        await server.operator.delete(f"/v1/workers/{worker.worker_id}")
        assert (await asking).json()["code"] == "worker-revoked"


async def test_a_round_does_not_wait_for_a_worker_that_was_revoked(server):
    run_id, [(revoked, _), (other, assignment)] = await server.a_round(quorum=1)
    await server.operator.delete(f"/v1/workers/{revoked.worker_id}")
    await other.send(assignment)
    first = (await server.rounds(run_id))[0]
    assert (first["declined"], first["status"]) == (1, "aggregating")


async def test_no_answer_repeats_a_secret(server):
    worker, device = await server.enrol("worker"), await a_device(server)
    secret, token, assertion = "s" * 43, await worker.token(), worker.sign()
    answers = [
        await server.client(secret).get("/v1/runs"),
        await server.client("fso_" + secret).get("/v1/runs"),
        await server.client("fsj_" + secret).post(
            "/v1/workers", json=server.enrolment("b", device.join_token)
        ),
        await device.enrol(proof=secret),
        await device.enrol(public_key=secret + "!"),
        await server.client().post("/v1/workers/w-none/token", json={"assertion": assertion}),
        await server.client().post(
            f"/v1/workers/{worker.worker_id}/token", json={"assertion": assertion + "s"}
        ),
        await worker.http.get("/v1/runs"),
        await worker.http.get("/v1/workers/w-other/assignment"),
        await server.operator.get("/v1/workers"),
        await server.operator.get("/v1/tokens"),
        await server.operator.get("/v1/keys"),
    ]
    signature = assertion.rpartition(".")[2]
    for answer in answers:
        for hidden in (secret, token, signature, device.join_token, worker.private_key):
            assert hidden not in answer.text


async def test_secrets_are_stored_as_hashes(start_server):
    server = await start_server(on_disk=True)
    token = await server.join_token()
    worker = await server.enrol("worker")
    shown = await worker.token()
    content = b"".join(path.read_bytes() for path in server.directory.glob("records.sqlite*"))
    assert worker.worker_id.encode() in content
    key = server.operator.headers["authorization"].split()[1]
    for secret in (JoinToken.parse(token).secret, shown, worker.private_key, key):
        assert secret.encode() not in content


async def test_the_first_start_leaves_working_credentials_in_private_files(start_server, tmp_path):
    server = await start_server()
    directory = tmp_path / "first"
    directory.mkdir()
    async with server.stores.records.write() as connection:
        await connection.exec_driver_sql("DELETE FROM operator_keys")
    keys = server.service.operator_keys
    assert await keys.make_first_credentials(directory)
    assert not await keys.make_first_credentials(directory)
    secrets = {path.name: path.read_text().strip() for path in directory.iterdir()}
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
    assert (await server.client(secrets["operator.key"]).get("/v1/runs")).status_code == 200
    enrolled = await Device(server, secrets["join.token"]).enrol()
    assert enrolled.status_code == 201


async def test_who_revokes_the_last_key_that_makes_others_gets_another_at_the_next_start(server, tmp_path):
    keys, directory = server.service.operator_keys, tmp_path / "later"
    directory.mkdir()
    asked = {"label": "keys for a day", "scopes": ["keys:write", "runs:read"], "expires_s": 86_400}
    made = (await server.operator.post("/v1/keys", json=asked)).json()
    reader = {"label": "reader", "scopes": ["runs:read"]}
    assert (await server.operator.post("/v1/keys", json=reader)).status_code == 201
    for key in (await server.operator.get("/v1/keys")).json()["keys"]:
        if key["label"] not in ("reader", made["label"]):
            assert (await server.operator.delete(f"/v1/keys/{key['key_id']}")).status_code == 204
    assert not await keys.make_first_credentials(directory)
    server.clock.advance(86_400_000)
    assert await keys.make_first_credentials(directory)
    assert [path.name for path in directory.iterdir()] == ["operator.key"]
    new = server.client((directory / "operator.key").read_text().strip())
    assert (await new.get("/v1/keys")).status_code == 200


async def test_a_key_makes_none_that_outlives_it(server):
    asked = {"label": "for a day", "scopes": ["keys:write"], "expires_s": 86_400}
    made = (await server.operator.post("/v1/keys", json=asked)).json()
    maker = server.client(made["operator_key"])
    server.clock.advance(1_000_000)
    child = (await maker.post("/v1/keys", json={"label": "child", "scopes": ["keys:write"]})).json()
    assert child["expires_ms"] == made["expires_ms"]
    refused = await maker.post("/v1/keys", json=asked)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid-message")
    shorter = await maker.post("/v1/keys", json=asked | {"expires_s": 60})
    assert shorter.status_code == 201


async def test_metrics_are_public_only_if_the_operator_says_so(start_server):
    server = await start_server(metrics_public=True)
    assert (await server.client().get("/metrics")).status_code == 200
