# SPDX-License-Identifier: Apache-2.0
"""The audit log says who did what, is only added to, and holds no secret."""

import json

import pytest

from protocol.join_token import JoinToken
from ps_service.audit import Audit
from tests.ps_service.conftest import OPERATOR_KEY, ManualClock


def lines(server):
    path = server.directory / "audit.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


async def test_what_operators_change_is_written_down_with_who_and_what(server):
    token = (await server.operator.post("/v1/tokens", json={"label": "site-a", "uses": 2})).json()
    run = await server.a_run()
    await server.operator.post(f"/v1/runs/{run.run_id}/cancel")
    found = [line for line in lines(server) if line["who"] == "operator k-test (test)"]
    assert [line["did"] for line in found] == [
        "POST /v1/tokens",
        f"PUT /v1/tensors/{run.spec.params_digest}",
        "POST /v1/runs",
        f"POST /v1/runs/{run.run_id}/cancel",
    ]
    assert (found[0]["token_id"], found[0]["label"], found[0]["uses"]) == (token["token_id"], "site-a", 2)
    assert found[2]["run_id"] == run.run_id
    assert found[0]["at"] == "1970-01-01T00:16:40.000+00:00"


async def test_reading_and_training_leave_no_line_and_refusals_do(server):
    _, [(worker, assignment), _] = await server.a_round()
    before = len(lines(server))
    await worker.send(assignment)
    await server.operator.get("/v1/runs")
    assert len(lines(server)) == before
    await server.client("fso_wrong").get("/v1/runs")
    await worker.http.get("/v1/runs")
    nobody, shown = lines(server)[before:]
    assert (nobody["who"], nobody["did"], nobody["status"]) == ("nobody", "GET /v1/runs", 401)
    assert (shown["who"], shown["status"]) == (f"worker {worker.worker_id}", 403)


async def test_enrolments_and_what_the_server_does_by_itself_are_written_down(start_server):
    server = await start_server(performing=False, quarantine_after=1)
    _, [(worker, assignment), _] = await server.a_round()
    enrolled = [line for line in lines(server) if line["did"] == "POST /v1/workers"]
    assert [line["name"] for line in enrolled] == ["worker-0", "worker-1"]
    bad = server.an_update(assignment, value=1.0)
    offer = await worker.declare(assignment, bad.header)
    assert (await worker.put(offer.json()["upload_url"], bad.body)).status_code == 422
    last = lines(server)[-1]
    assert (last["who"], last["did"], last["worker_id"]) == ("server", "quarantine", worker.worker_id)
    assert last["code"] == "outside-bound"


async def test_no_secret_is_ever_written_down(server):
    token = await server.join_token()
    worker = await server.enrol("device")
    shown, assertion = await worker.token(), worker.sign()
    key = (await server.operator.post("/v1/keys", json={"label": "x", "scopes": ["runs:read"]})).json()
    for client in (server.client(shown), server.client(token), server.client(key["operator_key"])):
        await client.post(f"/v1/runs?key={key['operator_key']}", json={"secret": assertion})
        await client.get(f"/v1/workers?token={shown}")
    url = f"/v1/workers/{worker.worker_id}/token"
    await server.client().post(url, json={"assertion": assertion + "x"})
    text = (server.directory / "audit.jsonl").read_text()
    assert "/v1/workers" in text
    secrets = (OPERATOR_KEY, token, JoinToken.parse(token).secret, shown, assertion, key["operator_key"])
    for secret in (*secrets, worker.private_key):
        assert secret not in text


async def test_a_flood_of_refusals_does_not_fill_the_disk_and_is_counted(server):
    for _ in range(700):
        await server.client().get("/v1/runs")
    refused = lines(server)
    assert len(refused) == 600
    server.clock.advance(1_000)
    await server.client().get("/v1/runs")
    assert lines(server)[-1]["refusals_left_out"] == 100


@pytest.mark.parametrize("path", ["/v1/workers", "/nothing/key"])
async def test_nobody_fills_the_disk_by_what_is_no_enrolment(server, path):
    for _ in range(700):
        answer = await server.client("anything").post(path, json={})
        assert answer.status_code in (404, 422)
    assert len(lines(server)) == 600
    await server.operator.post("/v1/tokens", json={})
    assert (lines(server)[-1]["status"], lines(server)[-1]["refusals_left_out"]) == (201, 100)


async def test_a_line_is_short_and_a_log_that_was_rotated_away_is_begun_anew(tmp_path):
    path = tmp_path / "audit.jsonl"
    audit = Audit(path, ManualClock())
    audit.note("nobody", "GET /" + "x" * 10_000, {"name": "y" * 10_000})
    assert len(path.read_text()) < 600
    path.rename(tmp_path / "audit.jsonl.1")
    audit.note("nobody", "again", {})
    assert json.loads(path.read_text())["did"] == "again"
