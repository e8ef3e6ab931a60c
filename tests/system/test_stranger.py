# SPDX-License-Identifier: Apache-2.0
"""A worker that shares nothing with the project but the wire document, against a real server."""

import ast
import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from protocol.codec import encode_bundle
from protocol.messages import RunSpec, RunStatus, TensorSpec
from tests.system.conftest import ServerProcess
from tests.system.raw_worker import RawWorker, Refused, read_state, write_update

ROUNDS = 3
START = -0.5
SHAPES: dict[str, tuple[int, ...]] = {"w": (3, 40), "empty": (0, 5), "b": (3,), "scalar": ()}
THIN = {"delta": "bounded_int4", "hessian": "sqrt_int4", "direction": "unit_int8", "params": "bf16"}
WIDE = {"delta": "bounded_int8", "hessian": "sqrt_int8"}


async def begin(
    server: ServerProcess,
    algorithm: str,
    cohort_size: int,
    rounds: int,
    hyperparameters: dict[str, float | int | None] | None = None,
    encodings: dict[str, str] | None = None,
    quorum: int | None = None,
) -> str:
    """A run of a small model that is the same number everywhere."""
    params = {name: np.full(shape, START, np.float32) for name, shape in SHAPES.items()}
    async with server.operator() as operator:
        spec = RunSpec(
            name="stranger",
            task="towards-one",
            algorithm=algorithm,
            hyperparameters=hyperparameters or {},
            model=tuple(TensorSpec(name=name, shape=shape) for name, shape in SHAPES.items()),
            params_digest=await operator.put_tensors(encode_bundle("params", params)),
            rounds=rounds,
            local_steps=4,
            cohort_size=cohort_size,
            quorum=quorum or cohort_size,
            encodings=encodings or {},
        )
        return (await operator.create_run(spec)).run_id


@contextmanager
def strangers(server: ServerProcess, join_token: str, count: int) -> Iterator[list[RawWorker]]:
    """Enrolled workers."""
    with ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client(base_url=server.url, timeout=20)) for _ in range(count)]
        workers = [RawWorker(client) for client in clients]
        for worker in workers:
            worker.enrol(join_token, "stranger", ["towards-one"])
        yield workers


def test_the_stranger_imports_nothing_but_httpx_msgpack_ed25519_and_the_standard_library() -> None:
    imported = set()
    for node in ast.walk(ast.parse(Path(__file__).with_name("raw_worker.py").read_text("utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(str(node.module).partition(".")[0])
    assert imported - sys.stdlib_module_names == {"cryptography", "httpx", "msgpack"}
    assert "importlib" not in imported


@pytest.mark.parametrize(
    ("algorithm", "hyperparameters", "encodings", "state"),
    [
        ("fed-sophia-shared", {"refresh_rounds": 2}, {"delta": "bf16"}, {"params", "direction", "hessian"}),
        ("fed-sophia-shared", {"refresh_rounds": 2}, THIN, {"params", "direction", "hessian"}),
        ("fed-sophia-shared", {"refresh_rounds": 2}, WIDE, {"params", "direction", "hessian"}),
        ("fed-sophia", {"hessian_every": 2}, {"delta": "f16"}, {"params"}),
        ("fed-sophia", {"hessian_every": 2}, {"delta": "bounded_int4", "params": "f16"}, {"params"}),
        ("fedavg", {}, {"delta": "f32"}, {"params"}),
    ],
)
async def test_a_worker_written_from_the_wire_document_alone_takes_part_to_the_end_of_a_run(
    server: ServerProcess,
    algorithm: str,
    hyperparameters: dict[str, float | int | None],
    encodings: dict[str, str],
    state: set[str],
) -> None:
    run_id = await begin(server, algorithm, 2, ROUNDS, hyperparameters, encodings)
    with strangers(server, await server.join_token(uses=2), 2) as workers:
        async with asyncio.timeout(60):
            taken = await asyncio.gather(*(asyncio.to_thread(w.take_part, ROUNDS) for w in workers))
            ended = await server.run_ended(run_id)
        for worker, assignments in zip(workers, taken, strict=True):
            receipts = [worker.receipt(assignment) for assignment in assignments]
            assert [(r["outcome"], r["version"]) for r in receipts] == [
                ("counted", version) for version in range(1, ROUNDS + 1)
            ]
            asked = ["hessian" in assignment["bundles"] for assignment in assignments]
            assert asked == ([True, False, True] if "hessian" in state else [False] * ROUNDS)
    assert ended.status is RunStatus.FINISHED
    assert set(ended.tensors) == state | ({"sent_params"} if "params" in encodings else set())
    async with server.operator() as operator:
        _, params = read_state(await operator.tensors(run_id, ended.tensors["params"]))
    assert {name: len(values) for name, values in params.items()} == {
        "w": 120,
        "empty": 0,
        "b": 3,
        "scalar": 1,
    }
    assert all(START < value < 1 for values in params.values() for value in values), "all moved towards 1"


@pytest.mark.parametrize("off_s", [-30 * 86_400, 86_400])
async def test_a_stranger_whose_clock_is_wrong_signs_by_the_servers(
    server: ServerProcess, off_s: int
) -> None:
    token = await server.join_token()
    with httpx.Client(base_url=server.url, timeout=20) as client:
        worker = RawWorker(client, clock_s=lambda: time.time() + off_s)
        await asyncio.to_thread(worker.enrol, token, "stranger", ["towards-one"])
        assert abs(worker.ahead_s + off_s) < 60
        await asyncio.to_thread(worker.renew)
        assert worker.access_token


async def test_a_wrong_update_is_refused_by_its_documented_code_and_the_right_one_still_counts(
    server: ServerProcess,
) -> None:
    run_id = await begin(server, "fed-sophia-shared", 1, rounds=1)
    with strangers(server, await server.join_token(), 1) as [worker]:
        assignment = worker.next_assignment()
        state = worker.fetch(assignment)
        bundles = worker.train(assignment, state)

        def changed(bundle: str, value: float) -> bytes:
            tensor = [*bundles[bundle]["w"][:-1], value]
            wrong = bundles | {bundle: bundles[bundle] | {"w": tensor}}
            return write_update(state.shapes, wrong, assignment["encodings"])

        right = write_update(state.shapes, bundles, assignment["encodings"])
        flipped = right[:-4] + bytes([right[-4] ^ 1]) + right[-3:]  # the least bit of the last number
        negated = right[:-1] + bytes([right[-1] ^ 0x80])  # its sign: seen before the digest is known
        headless = bytes([right[0] ^ 1]) + right[1:]
        for declared, sent, code in [
            (outside := changed("delta", 1.0), outside, "outside-bound"),
            (negative := changed("hessian", -1.0), negative, "negative-hessian"),
            (right[:-1], right[:-1], "truncated-tensor-message"),
            (right, right[:-1], "size-mismatch"),
            (right, flipped, "digest-mismatch"),
            (right, negated, "negative-hessian"),
            (right, headless, "malformed-tensor-message"),
        ]:
            offer = worker.declare(assignment, declared)
            with pytest.raises(Refused) as refusal:
                worker.put(offer, sent)
            assert refusal.value.code == code
        with pytest.raises(Refused) as refusal:
            worker.receipt(assignment)
        assert refusal.value.code == "not-found", "nothing was received so far"

        received = worker.deliver(assignment, right)
        assert received["digest"] == worker.deliver(assignment, right)["digest"], "declared again: held"
        with pytest.raises(Refused) as refusal:
            worker.declare(assignment, outside)
        assert refusal.value.code == "update-conflict"
        assert (await server.run_ended(run_id)).version == 1
        assert worker.receipt(assignment) | {"outcome": "pending", "version": None} == received
        assert (worker.receipt(assignment)["outcome"], worker.receipt(assignment)["version"]) == (
            "counted",
            1,
        )


async def test_a_stranger_who_declines_is_not_waited_for(server: ServerProcess) -> None:
    run_id = await begin(server, "fedavg", 2, rounds=1, quorum=1)
    with strangers(server, await server.join_token(uses=2), 2) as [willing, unwilling]:
        async with asyncio.timeout(60):
            work = asyncio.create_task(asyncio.to_thread(willing.take_part, 1))
            assignment = await asyncio.to_thread(unwilling.next_assignment)
            unwilling.decline(assignment, "the battery is low")
            unwilling.decline(assignment, "the battery is low")
            await work
            ended = await server.run_ended(run_id)
        assert ended.version == 1
        with pytest.raises(Refused) as refusal:
            unwilling.declare(assignment, b"too late")
        assert refusal.value.code == "assignment-declined"
