# SPDX-License-Identifier: Apache-2.0
"""Every route, and every kind of caller: what each is answered. A route without a row fails."""

import asyncio

import pytest
from sqlalchemy import select

from protocol.assertions import Purpose, public_key_of, thumbprint
from protocol.codec import MEDIA_TYPE
from ps_service.routes import ROUTERS
from ps_service.storage import schema
from tests.ps_service.conftest import a_message, add_operator, key_of

CALLERS = ("nobody", "revoked", "other worker", "worker", "evaluator", "operator without scope", "operator")
"""The worker is whom path and resources belong to; other worker and evaluator take part in nothing."""

OPERATORS = "401 403 403 403 403 403"
MAY = {
    "POST /v1/tokens": f"{OPERATORS} 201",
    "GET /v1/tokens": f"{OPERATORS} 200",
    "DELETE /v1/tokens/{token_id}": f"{OPERATORS} 404",
    "POST /v1/keys": f"{OPERATORS} 201",
    "GET /v1/keys": f"{OPERATORS} 200",
    "DELETE /v1/keys/{key_id}": f"{OPERATORS} 404",
    "POST /v1/workers": "401 403 403 403 403 403 403",  # none of them is a join token
    "GET /v1/workers": f"{OPERATORS} 200",
    "POST /v1/workers/{worker_id}/token": "401 401 401 401 401 401 401",  # a signature is all that counts
    "POST /v1/workers/{worker_id}/key": "401 403 403 204 403 403 403",
    "POST /v1/workers/{worker_id}/heartbeat": "401 403 403 204 403 403 403",
    "POST /v1/workers/{worker_id}/approve": f"{OPERATORS} 204",
    "POST /v1/workers/{worker_id}/release": f"{OPERATORS} 204",
    "DELETE /v1/workers/{worker_id}": f"{OPERATORS} 204",
    "GET /v1/workers/{worker_id}/assignment": "401 403 403 200 403 403 403",
    "GET /v1/assignments/{assignment_id}": "401 403 404 200 404 403 200",
    "POST /v1/assignments/{assignment_id}/update": "401 403 404 201 404 403 403",
    "GET /v1/assignments/{assignment_id}/update": "401 403 404 200 404 403 200",
    "POST /v1/assignments/{assignment_id}/decline": "401 403 404 409 404 403 403",  # it has sent its update
    "HEAD /v1/uploads/{upload_id}": "401 403 404 204 404 403 403",
    "PUT /v1/uploads/{upload_id}": "401 403 404 200 404 403 403",
    "PATCH /v1/uploads/{upload_id}": "401 403 404 200 404 403 403",
    "POST /v1/uploads/{upload_id}/stored": "401 403 404 408 404 403 403",
    "PUT /v1/tensors/{digest}": f"{OPERATORS} 200",
    "HEAD /v1/tensors/{digest}": f"{OPERATORS} 204",
    "GET /v1/runs/{run_id}/tensors/{digest}": "401 403 404 200 404 403 200",
    "HEAD /v1/runs/{run_id}/tensors/{digest}": "401 403 404 200 404 403 200",
    "POST /v1/runs": f"{OPERATORS} 201",
    "POST /v1/runs/import": f"{OPERATORS} 422",
    "GET /v1/runs": f"{OPERATORS} 200",
    "GET /v1/runs/{run_id}": "401 403 404 200 404 403 200",
    "POST /v1/runs/{run_id}/pause": f"{OPERATORS} 200",
    "POST /v1/runs/{run_id}/resume": f"{OPERATORS} 200",
    "POST /v1/runs/{run_id}/cancel": f"{OPERATORS} 200",
    "GET /v1/runs/{run_id}/rounds": f"{OPERATORS} 200",
    "GET /v1/runs/{run_id}/rounds/{round}/workers": f"{OPERATORS} 200",
    "POST /v1/runs/{run_id}/rounds/{round}/aggregate": f"{OPERATORS} 202",
    "GET /v1/runs/{run_id}/versions": f"{OPERATORS} 200",
    "POST /v1/runs/{run_id}/metrics": "401 403 403 403 404 403 403",
    "GET /v1/runs/{run_id}/events": f"{OPERATORS} 200",
    "GET /metrics": f"{OPERATORS} 200",
    "GET /v1/ca": "404 404 404 404 404 404 404",  # anybody may have it, if there is one
    "GET /healthz": "200 200 200 200 200 200 200",
    "GET /readyz": "200 200 200 200 200 200 200",
}
RECEIVED = {
    "GET /v1/assignments/{assignment_id}/update",
    "POST /v1/assignments/{assignment_id}/decline",
    "POST /v1/runs/{run_id}/rounds/{round}/aggregate",
}
"""What is asked here needs an update that was received."""
NARROW_KEY = "fso_" + "n" * 43


def routes_of(server):
    routes = [route for make in ROUTERS for route in make(server.service).routes]
    return {f"{method} {route.path}" for route in routes for method in route.methods}


async def test_every_route_has_a_row_and_no_other(server):
    assert routes_of(server) == set(MAY)


def scope_that_does_not_do(route):
    """Of a key that was made for something else than this route."""
    of_workers = any(part in route for part in ("/v1/workers", "/v1/tokens"))
    return ["runs:write"] if of_workers else ["workers:write"]


class Scene:
    """A run with an open round, in which one worker has sent its update, and everybody who may ask."""

    async def set(self, server, route):
        self.server = server
        run_id, [(self.worker, self.assignment), _] = await server.a_round(quorum=1)
        self.update = server.an_update(self.assignment)
        offer = await self.worker.declare(self.assignment, self.update.header)
        self.upload_url = offer.json()["upload_url"]
        if route in RECEIVED:
            await self.worker.put(self.upload_url, self.update.body)
        self.params = self.assignment["tensors"]["params"]
        other = await server.enrol("other", tasks=("something-else",))
        evaluator = await server.enrol("evaluator", role="evaluator", tasks=("something-else",))
        revoked = await server.enrol("revoked")
        shown = await revoked.token()
        await server.operator.delete(f"/v1/workers/{revoked.worker_id}")
        async with server.stores.records.write() as connection:
            await add_operator(
                connection, NARROW_KEY, key_id="k-narrow", scopes=scope_that_does_not_do(route)
            )
        self.path = {
            "worker_id": self.worker.worker_id,
            "assignment_id": self.assignment["assignment_id"],
            "upload_id": self.upload_url.rpartition("/")[2],
            "digest": self.params,
            "run_id": run_id,
            "round": "1",
            "token_id": "t-none",
            "key_id": "k-none",
        }
        self.clients = {
            "nobody": server.client(),
            "revoked": server.client(shown),
            "other worker": other.http,
            "worker": self.worker.http,
            "evaluator": evaluator.http,
            "operator without scope": server.client(NARROW_KEY),
            "operator": server.operator,
        }
        return self

    def asks(self, route):
        """What is sent: a body that is right, so that only who asks decides."""
        new_key = key_of("new")
        new_public, rotation = public_key_of(new_key), {"purpose": Purpose.ROTATE}
        said = {
            "POST /v1/tokens": {},
            "POST /v1/keys": {"label": "new", "scopes": ["runs:read"]},
            "POST /v1/workers/{worker_id}/token": {"assertion": "x.y.z"},
            "POST /v1/workers/{worker_id}/key": {
                "public_key": new_public,
                "proof": self.worker.sign(**rotation, private_key=new_key),
                "consent": self.worker.sign(**rotation, use=thumbprint(new_public)),
            },
            "POST /v1/workers/{worker_id}/heartbeat": {},
            "POST /v1/assignments/{assignment_id}/update": self.update.header,
            "POST /v1/assignments/{assignment_id}/decline": {"reason": "none"},
            "POST /v1/runs/import": {},
            "POST /v1/runs/{run_id}/metrics": {"version": 0, "num_examples": 1, "metrics": {}},
        }
        if route in said:
            return {"json": said[route]}
        if route == "PUT /v1/tensors/{digest}":
            return {
                "content": a_message("state", {"params": {"w": [1.0]}}),
                "headers": {"Content-Type": MEDIA_TYPE},
            }
        if route == "PUT /v1/uploads/{upload_id}":
            return {"content": self.update.body, "headers": {"Content-Type": MEDIA_TYPE}}
        if route == "PATCH /v1/uploads/{upload_id}":
            headers = {
                "Content-Type": "application/partial-upload",
                "Upload-Offset": "0",
                "Upload-Complete": "?1",
            }
            return {"content": self.update.body, "headers": headers}
        return {}


@pytest.mark.parametrize("route", sorted(MAY))
async def test_each_caller_is_answered_as_the_table_says(server, route):
    scene = await Scene().set(server, route)
    method, template = route.split()
    asked = scene.asks(route)
    if route == "POST /v1/runs":
        asked = {"json": await server.a_spec()}
    if route == "POST /v1/workers":
        asked = {"json": server.enrolment("new", await server.join_token())}
    found = []
    for caller, expected in zip(CALLERS, MAY[route].split(), strict=True):
        client = scene.clients[caller]
        url = template.format(**scene.path)
        if route == "GET /v1/runs/{run_id}/events" and caller == "operator":
            found.append("200" if await streams(server, url) else "no stream")
            continue
        before = await everything(server)
        answer = await client.request(method, url, **asked)
        found.append(str(answer.status_code))
        if expected in ("401", "403", "404") and caller != "operator":
            assert await everything(server) == before, f"{caller} was refused, and changed something"
    assert " ".join(found) == MAY[route]


async def streams(server, url):
    """Whether an operator is told events there."""
    async with server.on_a_socket() as client, asyncio.timeout(10), client.stream("GET", url) as answer:
        return answer.status_code == 200


async def everything(server):
    """All rows of all tables, but for what says that somebody was there."""
    passing = {"last_seen_ms"}
    async with server.stores.records.read() as connection:
        rows = {}
        for table in schema.metadata.sorted_tables:
            if table.name == "access_tokens":
                continue
            columns = [column for column in table.columns if column.name not in passing]
            rows[table.name] = sorted((await connection.execute(select(*columns))).all(), key=str)
    return rows
