# SPDX-License-Identifier: Apache-2.0
"""Every refusal is a problem with a stable code, and says nothing it should not."""

from protocol import errors
from protocol.errors import every_error
from ps_service.routes.problems import STATUS, answer

# raised on the worker's side and at the command line only
ELSEWHERE = {
    errors.ServerNotTrusted,
    errors.ServerUnreachable,
    errors.UnexpectedAnswer,
    errors.InvalidTask,
    errors.DataUnavailable,
    errors.DeviceUnavailable,
    errors.LocalStateCorrupt,
    errors.StateNotWritable,
    errors.InvalidUsage,
    errors.MalformedArchive,
    errors.MigrationFailed,
}


def test_every_error_that_the_server_raises_has_a_status():
    assert set(STATUS) == set(every_error()) - ELSEWHERE


def test_the_status_says_whose_fault_it_is():
    for error, status in STATUS.items():
        assert (status >= 500) == (error.fault is errors.Fault.SERVER), error


def test_an_answer_says_whether_to_try_again():
    assert answer(errors.UploadInProgress("wait")).headers["retry-after"] == "1"
    assert "retry-after" not in answer(errors.NotFound("no")).headers


async def test_an_unknown_path_is_not_found(server):
    for client in (server.operator, server.client()):
        answered = await client.get("/v2/nothing")
        assert answered.headers["content-type"] == "application/problem+json"
        assert answered.json() == {
            "type": "urn:fed-sophia:problem:not-found",
            "title": errors.NotFound.__doc__,
            "status": 404,
            "detail": "GET /v2/nothing: Not Found",
            "code": "not-found",
            "retryable": False,
        }


async def test_a_method_that_is_not_there_names_those_that_are(server):
    answered = await server.operator.patch("/v1/runs")
    assert (answered.status_code, answered.json()["code"]) == (405, "method-not-allowed")
    assert answered.headers["allow"]


async def test_an_unexpected_failure_tells_the_log_and_not_the_caller(server, caplog):
    @server.app.get("/v1/broken")
    async def broken() -> None:
        raise RuntimeError("the secret is swordfish")

    answered = await server.operator.get("/v1/broken")
    assert (answered.status_code, answered.json()["code"]) == (500, "internal")
    assert answered.json()["retryable"]
    assert "swordfish" not in answered.text
    assert "Traceback" not in answered.text
    assert "swordfish" in caplog.text


async def test_refusals_are_counted_by_code(server):
    await server.operator.get("/v1/runs/run-nothing")
    text = (await server.operator.get("/metrics")).text
    assert 'fed_sophia_refusals_total{code="not-found"} 1.0' in text


async def test_broken_json_is_an_invalid_message(server):
    for body in (
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 60_000,
        b"null",
        b'{"uses": NaN}',
        b'{"uses": ' + b"9" * 5000 + b"}",
    ):
        answered = await server.operator.post(
            "/v1/tokens", content=body, headers={"Content-Type": "application/json"}
        )
        assert (answered.status_code, answered.json()["code"]) == (422, "invalid-message"), body[:20]


async def test_health_and_readiness(server):
    assert (await server.client().get("/healthz")).json() == {"status": "ok"}
    assert (await server.client().get("/readyz")).json() == {"status": "ready"}
    server.service.stop_waiting()
    assert (await server.client().get("/readyz")).json()["code"] == "not-ready"
    assert (await server.client().get("/healthz")).status_code == 200


async def test_the_api_describes_itself_without_two_operations_of_one_name(server):
    """A name that stands twice is a warning, and warnings are errors here."""
    described = server.app.openapi()
    assert "/v1/runs/{run_id}/tensors/{digest}" in described["paths"]
    assert "requestBody" in described["paths"]["/v1/runs"]["post"]
