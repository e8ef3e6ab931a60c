# SPDX-License-Identifier: Apache-2.0
"""What the server says of itself at `/openapi.json`."""

import pytest

from protocol.codec import MEDIA_TYPE

BINARY = {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}
OPEN = {"/healthz", "/readyz", "/v1/ca", "/v1/workers/{worker_id}/token"}


@pytest.fixture
async def described(server):
    return (await server.client().get("/openapi.json")).json()


def operations(described):
    return [
        (path, operation) for path, of_path in described["paths"].items() for operation in of_path.values()
    ]


async def test_what_needs_a_credential_says_so(described):
    [(name, scheme)] = described["components"]["securitySchemes"].items()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for path, operation in operations(described):
        assert operation.get("security") == (None if path in OPEN else [{name: []}]), path


async def test_every_refusal_is_a_problem(described):
    problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
    for path, operation in operations(described):
        assert operation["responses"]["default"]["content"] == {"application/problem+json": problem}, path
        assert "422" not in operation["responses"], path
    assert "Problem" in described["components"]["schemas"]
    assert "HTTPValidationError" not in described["components"]["schemas"]


@pytest.mark.parametrize("path", ["/v1/tensors/{digest}", "/v1/uploads/{upload_id}"])
async def test_tensors_are_sent_as_bytes(described, path):
    assert described["paths"][path]["put"]["requestBody"] == {"required": True, "content": BINARY}


async def test_tensors_are_answered_as_bytes_whole_or_in_part(described):
    responses = described["paths"]["/v1/runs/{run_id}/tensors/{digest}"]["get"]["responses"]
    assert set(responses) == {"200", "206", "304", "307", "416", "default"}
    assert responses["200"]["content"] == responses["206"]["content"] == BINARY
    assert "content" not in responses["304"]
    assert set(responses["416"]["content"]) == {"application/problem+json"}


async def test_it_is_described_the_same_when_asked_twice(server, described):
    assert (await server.client().get("/openapi.json")).json() == described
