# SPDX-License-Identifier: Apache-2.0
"""Whatever is asked, by whomever: the answer is one that `/openapi.json` describes, and never a failure.

Requests are made up from that description, right ones and wrong ones, and sent to a server on a loopback
socket. Most are about things that exist: a run with an open round, its worker, its assignment, an upload.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from protocol.assertions import Purpose, public_key_of, thumbprint
from protocol.codec import MEDIA_TYPE, PART_MEDIA_TYPE, digest_of
from ps_service.routes.problems import STATUS
from tests.ps_service.archived import a_history, document_of
from tests.ps_service.conftest import MODEL, OPERATOR_KEY, Worker, a_message, key_of, values_like

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
STATUS_OF_CODE = {error.code: status for error, status in STATUS.items()}
CALLERS = {
    "an operator": (30, 31),
    "a worker": (30, 15),
    "an evaluator": (10, 5),
    "a joining device": (10, 4),
    "a stranger": (10, 3),
}
"""How much each asks of every operation, and how many operations serve it at least."""
RIGHT_HEADERS = {
    "PATCH /v1/uploads/{upload_id}": {"upload-offset": "0"},
    # an event is there at once, and one is all that is waited for
    "GET /v1/runs/{run_id}/events": {"last-event-id": "0"},
}
NEED_AN_UPDATE = {
    "GET /v1/assignments/{assignment_id}/update",
    "POST /v1/runs/{run_id}/rounds/{round}/aggregate",
}
"""These have something to give once an update is held."""
TIMEOUT_S = 20
FREELY = {
    "max_wait_s": 0.05,
    "quarantine_after": 0,
    "requests_per_s_per_worker": 1e6,
    "requests_per_s_per_address": 1e6,
}
"""Settings by which one may be wrong as often as one likes."""
QUIETLY = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
for _media_type in (MEDIA_TYPE, PART_MEDIA_TYPE):
    schemathesis.openapi.media_type(_media_type, st.binary(max_size=300))


@dataclass(frozen=True)
class Known:
    """What exists: values for the places in a path, by operation a body that is right, and who may ask."""

    places: dict[str, object]
    bodies: dict[str, object]
    credentials: dict[str, str | None]


async def what_exists(server, name: str, label: str, archive: dict) -> Known:
    """A run with an open round in which an update was declared, its worker, and some keys."""
    worker = await server.enrol(name, tasks=(name,))
    evaluator = await server.enrol(f"judge-of-{name}", role="evaluator", tasks=(name,))
    run = await server.a_run(task=name, cohort_size=2, min_workers=1)
    await worker.ask()
    assignment = await worker.assignment()
    update = server.an_update(assignment)
    url = (await worker.declare(assignment, update.header)).json()["upload_url"]
    if label in NEED_AN_UPDATE:
        await worker.put(url, update.body)
    token = (await server.operator.post("/v1/tokens", json={"uses": 100})).json()
    key = {"label": name, "scopes": ["metrics:read"]}
    places = {
        "run_id": run.run_id,
        "round": 1,
        "worker_id": worker.worker_id,
        "assignment_id": assignment["assignment_id"],
        "upload_id": url.rpartition("/")[2],
        "digest": run.spec.params_digest,
        "token_id": token["token_id"],
        "key_id": (await server.operator.post("/v1/keys", json=key)).json()["key_id"],
    }
    bodies = {
        "POST /v1/tokens": {"uses": 2},
        "POST /v1/keys": key,
        "POST /v1/workers/{worker_id}/heartbeat": {"tasks": [name]},
        "POST /v1/runs": await server.a_spec(),
        "POST /v1/runs/import": archive,
        "POST /v1/runs/{run_id}/metrics": {"version": 0, "num_examples": 5, "metrics": {"loss": 0.5}},
        "POST /v1/assignments/{assignment_id}/update": update.header,
        "POST /v1/assignments/{assignment_id}/decline": {"reason": "busy"},
        "PUT /v1/uploads/{upload_id}": update.body,
        "PATCH /v1/uploads/{upload_id}": update.body,
    } | signed(server, worker, token["join_token"])
    return Known(
        places,
        bodies,
        {
            "an operator": OPERATOR_KEY,
            "a worker": await worker.token(),
            "an evaluator": await evaluator.token(),
            "a joining device": token["join_token"],
            "a stranger": None,
        },
    )


def signed(server, worker: Worker, join_token: str) -> dict[str, object]:
    """Bodies with what a device or a worker signs."""
    new_key = key_of(f"new-{worker.worker_id}")
    return {
        "POST /v1/workers": server.enrolment(f"device-{worker.worker_id}", join_token),
        "POST /v1/workers/{worker_id}/token": {"assertion": worker.sign()},
        "POST /v1/workers/{worker_id}/key": {
            "public_key": public_key_of(new_key),
            "proof": worker.sign(Purpose.ROTATE, private_key=new_key),
            "consent": worker.sign(Purpose.ROTATE, use=thumbprint(public_key_of(new_key))),
        },
    }


def with_new_tensors(known: Known, number: int) -> Known:
    """The same, but the digest is that of a state message which nobody has stored yet."""
    message = a_message("state", {"params": values_like(MODEL, 0.3, seed=number)})
    places = known.places | {"digest": digest_of([message])}
    return replace(known, places=places, bodies=known.bodies | {"PUT /v1/tensors/{digest}": message})


@pytest.mark.parametrize("caller", CALLERS)
async def test_every_answer_is_described_and_none_is_the_server_s_fault(start_server, caller):
    examples, least_served = CALLERS[caller]
    served = set()
    server = await start_server(on_disk=True, **FREELY)
    history, _ = await a_history(server, rounds_held=1)
    archive = await document_of(server, history)
    async with server.on_a_socket() as client:
        described = schemathesis.openapi.from_dict((await client.get("/openapi.json")).json())
        described.config.generation.with_security_parameters = False  # `credential` is who asks
        described.config.max_stream_events = 1
        for number, found in enumerate(described.get_all_operations()):
            operation, name = found.ok(), f"job-{number}"
            known = await what_exists(server, name, operation.label, archive)
            if operation.label == "PUT /v1/tensors/{digest}":
                known = with_new_tensors(known, number)
            url, credential = str(client.base_url), known.credentials[caller]
            statuses = await asyncio.to_thread(ask, operation, known, url, credential, examples)
            if min(statuses) < 300:
                served.add(operation.label)
    assert len(served) >= least_served, served


def ask(operation: APIOperation, known: Known, url: str, credential: str | None, examples: int) -> set[int]:
    """Ask this many times and check each answer; give the statuses that were met."""
    statuses = set()
    headers = {"Authorization": f"Bearer {credential}"} if credential else {}

    def is_described(case: Case) -> None:
        answer = case.call(url, session, headers, timeout=TIMEOUT_S)
        statuses.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)
        if answer.status_code >= 400 and operation.method != "head":
            problem = answer.json()
            assert STATUS_OF_CODE[problem["code"]] == answer.status_code == problem["status"]
        if answer.content:
            says = operation.definition.raw["responses"]
            described = says.get(str(answer.status_code), says["default"])["content"]
            assert answer.headers["content-type"][0].partition(";")[0] in described

    with requests.Session() as session:
        session.trust_env = False
        for made_up, most in ((right(operation, known), 1), (st.one_of(*cases(operation, known)), examples)):
            settings(QUIETLY, max_examples=most)(given(made_up)(is_described))()
    return statuses


def right(operation: APIOperation, known: Known) -> st.SearchStrategy[Case]:
    """What an honest caller asks about what exists."""
    fixed = {"path_parameters": {each.name: known.places[each.name] for each in operation.path_parameters}}
    if operation.label in RIGHT_HEADERS:
        fixed["headers"] = RIGHT_HEADERS[operation.label]
    if operation.label in known.bodies:
        fixed["body"] = known.bodies[operation.label]
    return operation.as_strategy(GenerationMode.POSITIVE, **fixed)


def cases(operation: APIOperation, known: Known) -> Iterator[st.SearchStrategy[Case]]:
    """Requests about what exists, right, wrong and nearly right; and requests about anything."""
    places = {each.name: known.places[each.name] for each in operation.path_parameters}
    yield right(operation, known)
    if operation.query or operation.headers or operation.body or places:
        yield operation.as_strategy(GenerationMode.NEGATIVE)
    if places:
        yield operation.as_strategy(GenerationMode.POSITIVE)
    if operation.body:
        yield operation.as_strategy(GenerationMode.POSITIVE, path_parameters=places)
    body = known.bodies.get(operation.label)
    if isinstance(body, dict):
        for mode in GenerationMode:
            made_up = operation.as_strategy(mode, path_parameters=places)
            yield st.builds(nearly_right, made_up, st.just(body), st.sampled_from(sorted(body)))


def nearly_right(case: Case, body: dict, field: str) -> Case:
    """The right body with one field, or with any that it does not know, from the one that was made up."""
    made_up = case.body if isinstance(case.body, dict) else {}
    case.body = body | {key: value for key, value in made_up.items() if key == field or key not in body}
    return case
