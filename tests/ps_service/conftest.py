# SPDX-License-Identifier: Apache-2.0
"""A parameter server inside the test's process, and the words to speak to it.

The clock is moved by hand, the records are a real SQLite and requests go through httpx's ASGI transport,
which answers nothing before the whole answer is there: what streams is tested over a socket.
"""

import asyncio
import base64
import hashlib
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.assertions import Purpose, public_key_of, sign, thumbprint, use_of
from protocol.codec import MEDIA_TYPE, NamedTensor, digest_of, encode_message
from protocol.join_token import JoinToken
from protocol.messages import Receipt, RunSummary
from protocol.operator_keys import OperatorKeySummary
from ps_service.app import create_app
from ps_service.auth import hash_secret
from ps_service.background import background
from ps_service.connections import connection_options
from ps_service.effects import perform_effects
from ps_service.operator_keys import EVERYTHING
from ps_service.settings import Settings
from ps_service.storage import Stores, key_records, schema
from ps_service.storage.blobs import BlobStore
from ps_service.storage.files import FileBlobs
from ps_service.storage.records import open_records

OPERATOR_KEY = "fso_" + "k" * 43
MODEL = {"weight": (2, 3), "bias": (3,)}


class ManualClock:
    """Time that passes when told to."""

    def __init__(self, now_ms: int = 1_000_000) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        return self._now_ms

    def follow(self, utc_ms: int) -> None:
        """It does not."""

    def advance(self, milliseconds: int) -> None:
        self._now_ms += milliseconds


@dataclass(frozen=True)
class Update:
    """A body and what is declared of it."""

    header: dict
    body: bytes

    def declared(self, **changes) -> dict:
        return self.header | changes


def a_message(kind: str, bundles: dict, encodings: dict | None = None) -> bytes:
    """The bytes of a tensor message of {bundle: {name: array}}."""
    tensors = [
        NamedTensor(bundle, name, np.asarray(values, dtype=np.float32), (encodings or {}).get(bundle, "f32"))
        for bundle, of_bundle in bundles.items()
        for name, values in of_bundle.items()
    ]
    return b"".join(encode_message(kind, tensors))


def values_like(model: dict, value: float, seed: int = 0) -> dict:
    """Values of this size, one a coordinate, never zero: {name: array}."""
    generator = np.random.default_rng(seed)
    return {
        name: (value * generator.uniform(0.5, 1.0, shape)).astype(np.float32) for name, shape in model.items()
    }


def key_of(name: str) -> str:
    """The private key of the device of this name."""
    return base64.urlsafe_b64encode(hashlib.sha256(name.encode()).digest()).rstrip(b"=").decode()


async def add_operator(connection: AsyncConnection, secret: str = OPERATOR_KEY, **changes: object) -> None:
    """Let this key be an operator's, of every scope unless told otherwise."""
    known = {"key_id": "k-test", "label": "test", "scopes": EVERYTHING, "created_ms": 0}
    key = OperatorKeySummary.model_validate(known | changes)
    await key_records.add_operator_key(connection, hash_secret(secret), key)


class WorkerAuth(httpx.Auth):
    """Shows a worker's access token; asks for another when its time is over."""

    def __init__(self, worker: "Worker") -> None:
        self.worker = worker
        self.signed = 0
        self.token: str | None = None
        self._until_ms = 0

    def keep(self, token: str, expires_s: int) -> None:
        self.token = token
        self._until_ms = self.worker.server.clock.now_ms() + 1000 * expires_s

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        now_ms = self.worker.server.clock.now_ms()
        if self.token is None or now_ms >= self._until_ms:
            where = request.url.copy_with(path=f"/v1/workers/{self.worker.worker_id}/token", query=None)
            answer = yield httpx.Request("POST", where, json={"assertion": self.worker.sign()})
            await answer.aread()
            if answer.status_code != 200:
                return  # this is the answer
            self.keep(answer.json()["access_token"], answer.json()["expires_s"])
        request.headers["Authorization"] = f"Bearer {self.token}"
        yield request


class Worker:
    """One enrolled worker and its key."""

    def __init__(self, server: "ParameterServer", worker_id: str, private_key: str, server_id: str) -> None:
        self.worker_id = worker_id
        self.private_key = private_key
        self.server_id = server_id
        self.auth = WorkerAuth(self)
        self.move_to(server)

    def move_to(self, server: "ParameterServer") -> None:
        """Speak to this server from now on."""
        self.server = server
        self.http = server.client()
        self.http.auth = self.auth

    def moved_to(self, server: "ParameterServer") -> "Worker":
        """The same worker, which speaks to this server."""
        self.move_to(server)
        return self

    async def be_ready(self) -> None:
        """Get an access token before it is needed."""
        self.auth.keep(await self.token(), 600)

    def sign(self, purpose: Purpose = Purpose.TOKEN, **changes: object) -> str:
        """What this worker signs for an access token; `changes` replace what is signed."""
        self.auth.signed += 1
        signed = {
            "private_key": self.private_key,
            "purpose": purpose,
            "subject": self.worker_id,
            "server_id": self.server_id,
            "now_s": self.server.clock.now_ms() // 1000,
            "assertion_id": f"{self.worker_id}-{self.auth.signed:016d}",
        }
        return sign(**signed | changes)

    async def token(self) -> str:
        """An access token that is good now."""
        answer = await self.server.client().post(
            f"/v1/workers/{self.worker_id}/token", json={"assertion": self.sign()}
        )
        assert answer.status_code == 200, answer.text
        return answer.json()["access_token"]

    async def ask(self, wait_s: float = 0) -> httpx.Response:
        headers = {"Prefer": f"wait={wait_s}"} if wait_s else {}
        return await self.http.get(f"/v1/workers/{self.worker_id}/assignment", headers=headers)

    async def assignment(self, wait_s: float = 0) -> dict:
        answer = await self.ask(wait_s)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def declare(self, assignment: dict, header: dict) -> httpx.Response:
        return await self.http.post(f"/v1/assignments/{assignment['assignment_id']}/update", json=header)

    async def put(self, url: str, body: object, **headers: str) -> httpx.Response:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.put(url, content=body, headers={"Content-Type": MEDIA_TYPE} | headers)

    async def send(self, assignment: dict, update: Update | None = None) -> Receipt:
        """Declare and send; an update that fits is made when none is given."""
        update = update or self.server.an_update(assignment)
        offer = await self.declare(assignment, update.header)
        assert offer.status_code == 201, offer.text
        answer = await self.put(offer.json()["upload_url"], update.body)
        assert answer.status_code == 200, answer.text
        return Receipt.model_validate(answer.json())


class ParameterServer:
    """The application under test, an operator's client and helpers in the field's words."""

    def __init__(self, directory: Path, stores: Stores, clock: ManualClock, settings: Settings) -> None:
        self.directory = directory
        self.clock = clock
        self.app = create_app(settings, stores, clock, directory / "audit.jsonl")
        self.service = self.app.state.service
        self.runner = self.service.runner
        self.stores = stores
        self.operator = self.client(OPERATOR_KEY)
        self._tokens: dict[str, str] = {}

    def client(self, secret: str | None = None) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://server", headers=headers)

    async def join_token(self, **wanted: object) -> str:
        answer = await self.operator.post("/v1/tokens", json={"uses": 100} | wanted)
        assert answer.status_code == 201, answer.text
        return answer.json()["join_token"]

    async def enrol(self, name: str, *, role: str = "trainer", tasks: tuple = ("digits",)) -> Worker:
        if role not in self._tokens:
            self._tokens[role] = await self.join_token(role=role)
        token = self._tokens[role]
        answer = await self.client(token).post("/v1/workers", json=self.enrolment(name, token, tasks=tasks))
        assert answer.status_code == 201, answer.text
        return Worker(self, answer.json()["worker_id"], key_of(name), JoinToken.parse(token).server_id)

    def enrolment(self, name: str, join_token: str, /, **changes: object) -> dict:
        """What a device of this name says to enrol; `changes` replace parts of it."""
        key, token = key_of(name), JoinToken.parse(join_token)
        public_key = public_key_of(key)
        proof = sign(
            key,
            Purpose.ENROL,
            thumbprint(public_key),
            token.server_id,
            self.clock.now_ms() // 1000,
            "enrol-" + "0" * 16,
            use_of(token.secret),
        )
        return {"name": name, "public_key": public_key, "proof": proof, "tasks": ["digits"]} | changes

    async def store_params(self, model: dict = MODEL, value: float = 0.1) -> str:
        message = a_message("state", {"params": values_like(model, value)})
        digest = digest_of([message])
        answer = await self.operator.put(
            f"/v1/tensors/{digest}", content=message, headers={"Content-Type": MEDIA_TYPE}
        )
        assert answer.status_code in (200, 201), answer.text
        return digest

    async def a_spec(self, model: dict = MODEL, **changes: object) -> dict:
        spec = {
            "name": "test",
            "task": "digits",
            "algorithm": "fed-sophia-shared",
            "model": [{"name": name, "shape": shape} for name, shape in model.items()],
            "params_digest": await self.store_params(model),
            "rounds": 2,
            "cohort_size": 2,
            "quorum": 1,
            "deadline_s": 60,
        }
        return spec | changes

    async def a_run(self, **changes: object) -> RunSummary:
        answer = await self.operator.post("/v1/runs", json=await self.a_spec(**changes))
        assert answer.status_code == 201, answer.text
        return RunSummary.model_validate(answer.json())

    async def a_round(self, workers: int = 2, **spec: object) -> tuple[str, list[tuple[Worker, dict]]]:
        """A run whose first round is open: its id, and each worker with its assignment, in slot order."""
        run = await self.a_run(**{"cohort_size": workers} | spec)
        cohort = [await self.enrol(f"worker-{number}") for number in range(workers)]
        for worker in cohort:
            await worker.ask()
        return run.run_id, [(worker, await worker.assignment()) for worker in cohort]

    def an_update(
        self,
        assignment: dict,
        value: float = 0.005,
        *,
        model: dict = MODEL,
        seed: int = 0,
        bundles: dict | None = None,
        kind: str = "update",
        **changes: object,
    ) -> Update:
        """An honest update for an assignment; `bundles` replaces its values, `changes` its declaration."""
        values = {bundle: values_like(model, value, seed) for bundle in assignment["bundles"]}
        body = a_message(kind, values | (bundles or {}), assignment["encodings"])
        header = {
            "digest": digest_of([body]),
            "size_bytes": len(body),
            "bundles": assignment["bundles"],
            "encodings": assignment["encodings"],
            "num_examples": 10,
            "local_steps": assignment["local_steps"],
        }
        return Update(header | changes, body)

    async def aggregate_now(self) -> None:
        """Perform what committed transitions asked for, and tidy up behind it."""
        settings, told = self.service.settings, self.service.note_quarantine
        assert await perform_effects(self.runner, None, settings.quarantine_after, told)
        await self.service.housekeeping.look()

    async def someone_listens(self, topic: str) -> None:
        """Come back once a request waits for this topic to ring."""
        while not self.service.bell._listeners.get(topic):
            await asyncio.sleep(0)

    async def show(self, run_id: str) -> RunSummary:
        return RunSummary.model_validate((await self.operator.get(f"/v1/runs/{run_id}")).json())

    async def rounds(self, run_id: str) -> list[dict]:
        return (await self.operator.get(f"/v1/runs/{run_id}/rounds")).json()["rounds"]

    async def inventory(self) -> tuple[dict[str, int], list[str]]:
        """What is kept: {table: rows}, and every file but the database's own."""
        async with self.stores.records.read() as connection:
            rows = {
                table.name: (await connection.execute(select(func.count()).select_from(table))).scalar_one()
                for table in schema.metadata.sorted_tables
            }
        files = [str(path) for folder in ("blobs", "staging", "parts") for path in self._files(folder)]
        return rows, files

    def _files(self, folder: str) -> list[Path]:
        return sorted(path for path in (self.directory / folder).rglob("*") if path.is_file())

    @asynccontextmanager
    async def on_a_socket(self) -> AsyncIterator[httpx.AsyncClient]:
        """Serve on a loopback port while this is open; gives an operator's client of it."""
        listener = socket.create_server(("127.0.0.1", 0))
        # handed on to what is accepted: asyncio's own loop would wait 40 ms between a head and its body
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        port = listener.getsockname()[1]
        options = connection_options(self.service.settings)
        config = uvicorn.Config(
            self.app, log_config=None, lifespan="off", timeout_graceful_shutdown=1, **options
        )
        server = uvicorn.Server(config)
        config.load()
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[listener])
        try:
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}", headers=self.operator.headers, timeout=10
            ) as client:
                yield client
        finally:
            self.service.stop_waiting()
            await server.shutdown(sockets=[listener])


@pytest.fixture
def place_of(request: pytest.FixtureRequest) -> Callable[[Path, bool], Path | str | None]:
    """Where a server of these tests has its rows: SQLite, or PostgreSQL with FED_SOPHIA_TEST_POSTGRES=1."""
    if not os.environ.get("FED_SOPHIA_TEST_POSTGRES"):
        return lambda directory, on_disk: directory / "records.sqlite" if on_disk else None
    new_database, known = request.getfixturevalue("new_database"), {}

    def place(directory: Path, on_disk: bool) -> str:
        if not on_disk or directory not in known:
            known[directory] = new_database()
        return known[directory]

    return place


@pytest.fixture
async def start_server(tmp_path: Path, place_of: Callable) -> AsyncIterator[Callable]:
    """Start servers: `await start_server(clock=…, on_disk=True, performing=False, <settings>)`."""
    async with AsyncExitStack() as stack:

        async def start(
            *,
            clock: ManualClock | None = None,
            on_disk: bool = False,
            performing: bool = True,
            directory: Path = tmp_path,
            where: str | None = None,
            blobs: BlobStore | None = None,
            **settings: object,
        ) -> ParameterServer:
            records = await open_records(where or place_of(directory, on_disk))
            stack.push_async_callback(records.close)
            stores = Stores(records, blobs or FileBlobs(directory))
            server = ParameterServer(directory, stores, clock or ManualClock(), Settings(**settings))
            stack.push_async_callback(server.service.uploads.close)
            async with records.write() as connection:
                if not await key_records.list_operator_keys(connection):
                    await add_operator(connection)
            if performing:
                await stack.enter_async_context(background(server.service))
            return server

        yield start


@pytest.fixture
async def server(start_server: Callable) -> ParameterServer:
    """A server with its background work."""
    return await start_server()


@pytest.fixture
def message() -> Callable[..., bytes]:
    """Makes the bytes of tensor messages."""
    return a_message
