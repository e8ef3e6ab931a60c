# SPDX-License-Identifier: Apache-2.0
"""A worker written from docs/reference/wire-format.md alone.

It shares no code with the project: httpx, msgpack, Ed25519 of cryptography and the standard library are all
it has. It shows that the document says enough for a worker in another language, and breaks when the document
and the server part ways.

Its model has no inputs. Every example is a number y, every parameter θ predicts it, and the loss is the mean
of (θ − y)²/2: the likelihood of a Gaussian of unit variance, so that curvature can be estimated as the
document says. Training draws every parameter towards the mean of the examples, 1.
"""

import base64
import hashlib
import json as jsons
import math
import random
import secrets
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypedDict, cast
from urllib.parse import quote

import httpx
import msgpack
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MEDIA_TYPE = "application/vnd.fed-sophia.v1+msgpack"
BUNDLES = {"sgd": ["delta"], "sophia": ["delta"], "sophia_shared": ["delta", "hessian"]}
ELEMENTS = {"f32": "f", "bf16": "H", "f16": "e"}
HIGHEST = {"bounded_int8": 127, "bounded_int4": 7, "sqrt_int8": 255, "sqrt_int4": 15, "unit_int8": 127}
EXAMPLES = (0.8, 0.9, 1.0, 1.1, 1.2)
ATTEMPTS = 5

Shapes = dict[str, list[int]]
Tensors = dict[str, list[float]]
"""A bundle: name → values in C order."""


class Assignment(TypedDict):
    """What a worker reads of an assignment; it ignores all else."""

    assignment_id: str
    run_id: str
    tensors: dict[str, str]
    bundles: list[str]
    encodings: dict[str, str]
    optimizer: str
    settings: dict[str, float]
    local_steps: int
    batch_size: int
    seed: int


class Receipt(TypedDict):
    """What became of an update."""

    digest: str
    outcome: str
    version: int | None
    reason: str | None


class State(NamedTuple):
    """What an assignment starts from; the shapes are in the order of the `params` message."""

    shapes: Shapes
    bundles: dict[str, Tensors]

    def copy(self, bundle: str) -> Tensors:
        """A bundle to compute with. One that is absent is all zeros."""
        held = self.bundles.get(bundle, {})
        return {name: list(held.get(name, [0.0] * math.prod(self.shapes[name]))) for name in self.shapes}


@dataclass
class Momentum:
    """m, h and t of the document."""

    m: Tensors
    h: Tensors
    t: int = 0


class Unable(Exception):
    """The reason to decline an assignment."""


class Refused(Exception):
    """The server said no, in a problem document."""

    def __init__(self, problem: dict[str, object]) -> None:
        super().__init__(f"{problem['code']}: {problem['detail']}")
        self.code = problem["code"]
        self.retryable = problem["retryable"]
        self.server_ms = problem.get("server_ms")


@dataclass
class RawWorker:
    """One device: its connection, its key, and what `sophia` keeps between the rounds of a run."""

    client: httpx.Client
    worker_id: str = ""
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    server_id: str = ""
    access_token: str = ""
    renew_at_s: float = 0.0
    clock_s: Callable[[], float] = time.time
    ahead_s: float = 0.0
    """How far the server's clock is ahead of this one."""
    kept: dict[str, Momentum] = field(default_factory=dict)

    def enrol(self, join_token: str, name: str, tasks: list[str]) -> None:
        """Step 1."""
        secret, self.server_id = join_token.removeprefix("fsj_").split(".")[:2]
        public_key = base64url(self.key.public_key().public_bytes_raw())
        jwk = f'{{"crv":"Ed25519","kty":"OKP","x":"{public_key}"}}'
        thumbprint = base64url(hashlib.sha256(jwk.encode()).digest())
        use = {"use": hashlib.sha256(secret.encode()).hexdigest()}
        message = {"schema_version": 2, "name": name, "public_key": public_key, "tasks": tasks}
        message |= {"protocol_min": 1, "protocol_max": 1}
        headers = {"Authorization": f"Bearer {join_token}"}

        def enrol() -> httpx.Response:
            proof = self._sign("fed-sophia-enrol+jwt", thumbprint, use)
            return self._ask("POST", "/v1/workers", headers, json=message | {"proof": proof})

        self.worker_id = self._by_the_servers_clock(enrol).json()["worker_id"]

    def renew(self) -> None:
        """Have an access token."""

        def exchange() -> httpx.Response:
            assertion = {"assertion": self._sign("fed-sophia-token+jwt", self.worker_id)}
            return self._ask(
                "POST", f"/v1/workers/{quote(self.worker_id, safe='')}/token", {}, json=assertion
            )

        asked_s = time.monotonic()
        issued = self._by_the_servers_clock(exchange).json()
        self.access_token, self.renew_at_s = issued["access_token"], asked_s + 0.8 * issued["expires_s"]

    def _sign(self, purpose: str, subject: str, more: dict[str, str] | None = None) -> str:
        """An assertion."""
        now_s = int(self.clock_s() + self.ahead_s)
        claims = {"iss": subject, "sub": subject, "aud": self.server_id, "iat": now_s, "exp": now_s + 60}
        claims |= {"jti": base64url(secrets.token_bytes(16)), **(more or {})}
        parts = [
            base64url(jsons.dumps(part).encode()) for part in ({"alg": "Ed25519", "typ": purpose}, claims)
        ]
        return ".".join([*parts, base64url(self.key.sign(".".join(parts).encode()))])

    def _by_the_servers_clock(self, ask: Callable[[], httpx.Response]) -> httpx.Response:
        """Ask for what takes an assertion; once more by the server's time if ours is wrong."""
        try:
            return ask()
        except Refused as refused:
            if refused.code != "clock-skewed" or not isinstance(refused.server_ms, int):
                raise
            self.ahead_s = refused.server_ms / 1000 - self.clock_s()
        return ask()

    def next_assignment(self) -> Assignment:
        """Step 2: wait, half a minute at most."""
        for _ in range(6):
            path = f"/v1/workers/{quote(self.worker_id, safe='')}/assignment"
            answer = self._ask("GET", path, {"Prefer": "wait=5"})
            if answer.status_code == 200:
                return cast(Assignment, answer.json())
        raise TimeoutError("no assignment came")

    def fetch(self, assignment: Assignment) -> State:
        """Step 3."""
        state = State({}, {})
        for bundle, digest in assignment["tensors"].items():
            path = f"/v1/runs/{quote(assignment['run_id'], safe='')}/tensors/{digest}"
            message = self._ask("GET", path).content
            if hashlib.sha256(message).hexdigest() != digest:
                raise ValueError(f"{bundle} is not what its digest says")
            shapes, state.bundles[bundle] = read_state(message)
            if bundle == "params":
                state.shapes.update(shapes)
        return state

    def train(self, assignment: Assignment, state: State) -> dict[str, Tensors]:
        """Step 4: the bundles that were asked for."""
        theta, estimate = state.copy("params"), {}
        match assignment["optimizer"]:
            case "sgd":
                sgd(assignment, theta)
            case "sophia":
                fresh = Momentum(state.copy("m"), state.copy("h"))
                kept = self.kept.setdefault(assignment["run_id"], fresh)
                sophia(assignment, theta, kept, every=int(assignment["settings"]["hessian_every"]))
            case "sophia_shared":
                h, s = state.copy("hessian"), assignment["settings"]
                m = {name: [max(x, s["epsilon"]) for x in values] for name, values in h.items()}
                for name, direction in state.copy("direction").items():
                    m[name] = [-s["clip_bound"] * q * x for q, x in zip(direction, m[name], strict=True)]
                every = assignment["local_steps"] if "hessian" in assignment["bundles"] else 0
                estimate = sophia(assignment, theta, Momentum(m, h), every)
        start = state.copy("params")
        delta = {n: [x - x0 for x, x0 in zip(theta[n], start[n], strict=True)] for n in theta}
        return {name: {"delta": delta, "hessian": estimate}[name] for name in assignment["bundles"]}

    def prepare(self, assignment: Assignment) -> bytes:
        """Steps 3 and 4, and the message for step 5."""
        refuse_unknown(assignment)
        state = self.fetch(assignment)
        bundles = self.train(assignment, state)
        try:
            if assignment["optimizer"] != "sgd":
                refuse_outside_bound(assignment, state.bundles["params"], bundles["delta"])
            return write_update(state.shapes, bundles, assignment["encodings"], box_of(assignment, state))
        except OverflowError as error:
            raise Unable(str(error)) from error

    def declare(self, assignment: Assignment, message: bytes) -> httpx.Response:
        """Step 5, its first half: 201 and an offer, or 200 and a receipt."""
        header = {
            "schema_version": 1,
            "digest": hashlib.sha256(message).hexdigest(),
            "size_bytes": len(message),
            "bundles": assignment["bundles"],
            "encodings": assignment["encodings"],
            "num_examples": len(EXAMPLES),
            "local_steps": assignment["local_steps"],
            "metrics": {},
        }
        return self._ask("POST", _path(assignment, "update"), json=header)

    def put(self, offer: httpx.Response, message: bytes) -> Receipt:
        """Step 5, its second half."""
        url, headers = offer.json()["upload_url"], {"Content-Type": MEDIA_TYPE}
        return cast(Receipt, self._ask("PUT", url, headers, content=message).json())

    def deliver(self, assignment: Assignment, message: bytes) -> Receipt:
        """All of step 5, until a receipt is held."""
        answer = self.declare(assignment, message)
        return self.put(answer, message) if answer.status_code == 201 else cast(Receipt, answer.json())

    def receipt(self, assignment: Assignment) -> Receipt:
        """Step 6."""
        return cast(Receipt, self._ask("GET", _path(assignment, "update")).json())

    def decline(self, assignment: Assignment, reason: str) -> None:
        """Step 7."""
        self._ask("POST", _path(assignment, "decline"), json={"reason": reason})

    def take_part(self, updates: int) -> list[Assignment]:
        """Send so many updates, and give the assignments they were for; decline what is not known here."""
        done: list[Assignment] = []
        while len(done) < updates:
            assignment = self.next_assignment()
            try:
                self.deliver(assignment, self.prepare(assignment))
                done.append(assignment)
            except Unable as reason:
                self.decline(assignment, str(reason))
        return done

    def _ask(
        self,
        method: str,
        path: str,
        headers: dict[str, str] | None = None,
        json: object = None,
        content: bytes | None = None,
    ) -> httpx.Response:
        """One request, repeated a few times when there is no answer or one that says to try again."""
        proves_itself = path == "/v1/workers" or path.endswith("/token")
        for attempt in range(1, ATTEMPTS + 1):
            given = dict(headers or {})
            if not proves_itself:
                if time.monotonic() >= self.renew_at_s:
                    self.renew()
                given["Authorization"] = f"Bearer {self.access_token}"
            try:
                answer = self.client.request(method, path, headers=given, json=json, content=content)
                if answer.is_success:
                    return answer
                problem = Refused(answer.json())
                if problem.code == "unauthenticated" and not proves_itself and attempt < ATTEMPTS:
                    self.renew_at_s = 0.0  # the access token has ended early
                    continue
                if attempt == ATTEMPTS or not problem.retryable or method == "PUT":  # a PUT: declare again
                    raise problem
            except httpx.TransportError:
                if attempt == ATTEMPTS:
                    raise
            time.sleep(0.1 * 2**attempt * random.random())
        raise AssertionError("the last attempt answers or raises")


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _path(assignment: Assignment, last: str) -> str:
    return f"/v1/assignments/{quote(assignment['assignment_id'], safe='')}/{last}"


def refuse_unknown(assignment: Assignment) -> None:
    """A worker does nothing that it only half understands."""
    if assignment["optimizer"] not in BUNDLES:
        raise Unable(f"optimizer {assignment['optimizer']} is not known here")
    for bundle in assignment["bundles"]:
        if bundle not in BUNDLES[assignment["optimizer"]]:
            raise Unable(f"bundle {bundle} is not known here")
        if assignment["encodings"][bundle] not in ELEMENTS | HIGHEST:
            raise Unable(f"encoding {assignment['encodings'][bundle]} is not known here")


class Box(NamedTuple):
    """The bound of the document, where it is around, and what a `bounded_*` payload is drawn by."""

    reach: float
    gone: float
    start: Tensors
    seed: int


def box_of(assignment: Assignment, state: State) -> Box | None:
    s, steps = assignment["settings"], assignment["local_steps"]
    if assignment["optimizer"] == "sgd":
        return None
    rate, decay = s["learning_rate"], s["weight_decay"]
    gone = -math.expm1(steps * math.log1p(-rate * decay))
    reach = s["clip_bound"] * (gone / decay if decay else steps * rate)
    return Box(reach, gone, state.bundles["params"], assignment["seed"])


def refuse_outside_bound(assignment: Assignment, start: Tensors, delta: Tensors) -> None:
    """The bound of the document, for delta as the server will decode it."""
    steps, encoding = assignment["local_steps"], assignment["encodings"]["delta"]
    if (box := box_of(assignment, State({}, {"params": start}))) is None:
        return
    if encoding in HIGHEST:
        encoding = "f32"  # what is rounded to integers is judged before
    relative, least = {"f32": (0.0, 0.0), "bf16": (2**-8, 2**-134), "f16": (2**-11, 2**-25)}[encoding]
    for name, values in delta.items():
        for x, x0 in zip(decode(encode(values, encoding), encoding), start[name], strict=True):
            rounding = max(relative * abs(x), least)
            slack = 3 * (steps + 1) * 2**-24 * (abs(x0) + box.reach) + rounding
            if abs(x + box.gone * x0) > box.reach * (1 + 1e-4) + slack:
                raise Unable(f"a step of {name} is outside the bound")


def sgd(assignment: Assignment, theta: Tensors) -> None:
    """Plain local steps, in place."""
    rng, rate = random.Random(assignment["seed"]), assignment["settings"]["learning_rate"]
    for _ in range(assignment["local_steps"]):
        y = math.fsum(batch := rng.choices(EXAMPLES, k=assignment["batch_size"])) / len(batch)
        for name, values in theta.items():
            theta[name] = [x - rate * (x - y) for x in values]


def sophia(assignment: Assignment, theta: Tensors, kept: Momentum, every: int) -> Tensors:
    """Clipped local steps, in place, with an estimate where t mod `every` is 0; gives the last."""
    s, rng, estimate = assignment["settings"], random.Random(assignment["seed"]), dict[str, list[float]]()
    rate, beta1, beta2 = s["learning_rate"], s["momentum_decay"], s["hessian_decay"]
    for _ in range(assignment["local_steps"]):
        y = math.fsum(batch := rng.choices(EXAMPLES, k=assignment["batch_size"])) / len(batch)
        estimating = every > 0 and kept.t % every == 0
        for name, values in theta.items():
            m, h = kept.m[name], kept.h[name]
            if estimating:
                estimate[name] = [curvature(rng, len(batch)) for _ in values]
            for i, x in enumerate(values):
                m[i] = beta1 * m[i] + (1 - beta1) * (x - y)
                if estimating:
                    h[i] = beta2 * h[i] + (1 - beta2) * estimate[name][i]
                x -= rate * s["weight_decay"] * x
                ratio = m[i] / max(h[i], s["epsilon"])
                values[i] = x - rate * min(max(ratio, -s["clip_bound"]), s["clip_bound"])
        kept.t += 1
    return estimate


def curvature(rng: random.Random, batch: int) -> float:
    """One coordinate of ĥ: a drawn label is θ plus a standard normal, which is what the gradient then is."""
    g = math.fsum(rng.gauss(0.0, 1.0) for _ in range(batch)) / batch
    return batch * g * g


def encode(values: list[float], encoding: str) -> bytes:
    """A payload."""
    if encoding == "bf16":
        bits = struct.unpack(f"<{len(values)}I", struct.pack(f"<{len(values)}f", *values))
        values = [(u + 0x7FFF + ((u >> 16) & 1)) >> 16 for u in bits]
    payload = struct.pack(f"<{len(values)}{ELEMENTS[encoding]}", *values)
    if not all(map(math.isfinite, decode(payload, encoding))):
        raise OverflowError(f"{encoding} cannot hold a value")
    return payload


def decode(payload: bytes, encoding: str) -> list[float]:
    """The values of a payload of floats, or of the one encoding of integers that comes down."""
    if encoding == "unit_int8":
        return [code / HIGHEST[encoding] for code in struct.unpack(f"<{len(payload)}b", payload)]
    count = len(payload) // struct.calcsize(ELEMENTS[encoding])
    values = struct.unpack(f"<{count}{ELEMENTS[encoding]}", payload)
    if encoding == "bf16":
        values = struct.unpack(f"<{count}f", struct.pack(f"<{count}I", *(v << 16 for v in values)))
    return list(values)


def to_integers(values: list[float], encoding: str, box: Box, name: str) -> tuple[bytes, dict[str, float]]:
    """A payload of an update, and the constants of its header."""
    highest, draws = HIGHEST[encoding], random.Random(f"{box.seed}/{encoding}/{name}")
    if encoding.startswith("bounded"):
        constants = {"scale": box.reach, "shrinkage": box.gone}
        moved = (x + box.gone * x0 for x, x0 in zip(values, box.start[name], strict=True))
        levels = [highest * min(max(d / box.reach, -1.0), 1.0) for d in moved]
    else:
        roots = [math.sqrt(x) for x in values]
        scale = struct.unpack("<f", struct.pack("<f", max(roots, default=0.0)))[0]
        constants = {"scale": scale if scale >= 2**-55 else 0.0}
        levels = [highest * min(root / scale, 1.0) if constants["scale"] else 0.0 for root in roots]
    codes = [min(math.floor(level + draws.random()), highest) & 0xFF for level in levels]
    if encoding.endswith("int8"):
        return bytes(codes), constants
    halves = [code & 0x0F for code in [*codes, *[0] * (len(codes) % 2)]]
    return bytes(low | high << 4 for low, high in zip(halves[::2], halves[1::2], strict=True)), constants


def write_update(
    shapes: Shapes, bundles: dict[str, Tensors], encodings: dict[str, str], box: Box | None = None
) -> bytes:
    """An `update` message: the bundles in their order, each with all the tensors of `shapes` in theirs."""
    entries, payloads = [], []
    for bundle, tensors in bundles.items():
        for name, shape in shapes.items():
            constants: dict[str, float] = {}
            if encodings[bundle] in HIGHEST and box is not None:
                payload, constants = to_integers(tensors[name], encodings[bundle], box, name)
            else:
                payload = encode(tensors[name], encodings[bundle])
            entry: dict[str, object] = {"bundle": bundle, "name": name, "dtype": "float32", "shape": shape}
            entry |= {"encoding": encodings[bundle], "constants": constants, "size_bytes": len(payload)}
            entries.append(entry)
            payloads.append(payload)
    message = bytes(msgpack.packb({"schema_version": 1, "kind": "update", "tensors": entries}))
    for payload in payloads:
        prefix = _prefix(len(payload))
        message += b"\xc0" * (-(len(message) + len(prefix)) % 64) + prefix + payload
    return message


def read_state(message: bytes) -> tuple[Shapes, Tensors]:
    """The shapes and the values of a `state` message, after all the checks of the layout."""
    unpacker = msgpack.Unpacker(max_buffer_size=len(message))
    unpacker.feed(message)
    header, shapes, tensors = unpacker.unpack(), Shapes(), Tensors()
    if header["schema_version"] != 1 or header["kind"] != "state":
        raise ValueError("not a state message of version 1")
    offset: int = unpacker.tell()
    for entry in header["tensors"]:
        size, shape = entry["size_bytes"], entry["shape"]
        prefix = _prefix(size)
        padding = b"\xc0" * (-(offset + len(prefix)) % 64)
        start = offset + len(padding) + len(prefix)
        if message[offset:start] != padding + prefix or entry["dtype"] != "float32":
            raise ValueError(f"{entry['name']} is not laid out as the header says")
        values = decode(message[start : start + size], entry["encoding"])
        if len(values) != math.prod(shape):
            raise ValueError(f"{entry['name']} does not have {shape} elements")
        shapes[entry["name"]], tensors[entry["name"]], offset = shape, values, start + size
    if offset != len(message):
        raise ValueError("bytes follow the last payload, or some are missing")
    return shapes, tensors


def _prefix(size: int) -> bytes:
    if size <= 0xFF:
        return struct.pack(">BB", 0xC4, size)
    return struct.pack(">BH", 0xC5, size) if size <= 0xFFFF else struct.pack(">BI", 0xC6, size)
