# SPDX-License-Identifier: Apache-2.0
"""Archives that a server does not take, of which nothing is kept; and the longest that it does."""

import asyncio
import gzip
import json
import time
from dataclasses import replace

import pytest

from fed_sophia.archive import archive_of
from protocol.codec import MEDIA_TYPE, digest_of
from protocol.errors import MessageTooLarge, UnknownTensors
from protocol.messages import parse
from protocol.run_archive import RunArchive
from ps_service.archives import import_run as store_run
from ps_service.round_runner import RoundRunner
from ps_service.storage import condemned_records
from ps_service.storage.files import FileBlobs
from tests.ps_service.archived import a_history, document_of, operator_of
from tests.ps_service.conftest import a_message, values_like

JSON = {"Content-Type": "application/json"}


# --- what is refused ------------------------------------------------------------------------------


def changed(document, **fields):
    return document | fields


async def a_stored_message(server, kind, bundles):
    content = a_message(kind, bundles)
    await server.operator.put(
        f"/v1/tensors/{digest_of([content])}", content=content, headers={"Content-Type": MEDIA_TYPE}
    )
    return digest_of([content])


async def test_what_cannot_be_a_run_here_is_refused_and_nothing_of_it_is_kept(server):
    run_id, (worker, _) = await a_history(server, algorithm="fedavg", rounds_held=1)
    document = await document_of(server, run_id)
    other_model = await a_stored_message(
        server, "state", {"params": values_like({"weight": (3, 2), "bias": (3,)}, 0.1)}
    )
    other_bundle = await a_stored_message(
        server, "state", {"hessian": values_like({"weight": (2, 3), "bias": (3,)}, 0.1)}
    )
    assignment = await worker.assignment()
    update = server.an_update(assignment)
    await worker.send(assignment, update)

    def with_last(digest):
        first, last = document["versions"]
        return changed(document, versions=[first, last | {"tensors": {"params": digest}}])

    before = await server.inventory()
    for refused, code, says in (
        (with_last("f" * 64), "unknown-tensors", f"version 1: nothing is stored under {'f' * 64}"),
        (changed(with_last("f" * 64), included=[]), "unknown-tensors", "f" * 64),
        (with_last(other_model), "shape-mismatch", "weight"),
        (with_last(other_bundle), "shape-mismatch", "expected params/weight, got hessian/weight"),
        (with_last(update.declared()["digest"]), "malformed-tensor-message", "expected 'state'"),
        (
            changed(document, spec=document["spec"] | {"combiners": {"delta": "loudest"}}),
            "invalid-message",
            "loudest",
        ),
        (changed(document, schema_version=2), "invalid-message", "schema_version"),
        (changed(document, members=[]), "invalid-message", "members"),
        (changed(document, rounds=document["rounds"][1:]), "invalid-message", "expected round 1"),
    ):
        answer = await server.operator.post("/v1/runs/import", json=refused)
        assert answer.json()["code"] == code, answer.text
        assert says in answer.json()["detail"]
        assert await server.inventory() == before


def a_runner_on(blobs, server):
    """A runner beside the server's own that has its records and another blob store."""
    stores = replace(server.runner.stores, blobs=blobs)
    return RoundRunner(stores, server.clock, server.service.bell, server.service.meters)


async def test_tensors_that_go_while_the_run_is_written_are_missed(start_server, server, tmp_path):
    """The store loses them between the check of their headers and the transaction."""
    run_id, _ = await a_history(server)
    document = await document_of(server, run_id)

    loop = asyncio.get_running_loop()

    async def go(digest):
        async with server.stores.records.write() as connection:
            await condemned_records.condemn(connection, [digest], 1, 0)
            await condemned_records.have_gone(connection, [digest], 1, 1)

    class Losing(FileBlobs):
        def read_into(self, digest, offset, buffer):
            super().read_into(digest, offset, buffer)
            asyncio.run_coroutine_threadsafe(go(digest), loop).result(30)
            self.delete(digest)

    runner = a_runner_on(Losing(tmp_path), server)
    before, _ = await server.inventory()
    with pytest.raises(UnknownTensors, match="version 3: nothing is stored"):
        await store_run(runner, parse(RunArchive, document))
    after, _ = await server.inventory()
    assert after | {"condemned": before["condemned"]} == before


async def test_only_an_operator_imports_and_a_stranger_s_body_is_not_unpacked(server):
    worker = await server.enrol("worker-0")
    body = {"content": b"no gzip", "headers": JSON | {"Content-Encoding": "gzip"}}
    for client, code in ((server.client(), "unauthenticated"), (worker.http, "forbidden")):
        assert (await client.post("/v1/runs/import", **body)).json()["code"] == code
        assert (await client.head(f"/v1/tensors/{'0' * 64}")).status_code in (401, 403)
    assert (await server.operator.post("/v1/runs/import", **body)).json()["code"] == "invalid-message"


@pytest.mark.parametrize(
    ("content", "headers", "code"),
    [
        (gzip.compress(b" " * (64 << 20) + b" "), {"Content-Encoding": "gzip"}, "message-too-large"),
        (b"", {"Content-Encoding": "gzip"}, "invalid-message"),
        (b"{}", {"Content-Encoding": "br"}, "unsupported-media-type"),
        (b"{}", {"Content-Type": "text/plain"}, "unsupported-media-type"),
        (b"{}", {}, "invalid-message"),
        (b"[" * 1_000_000, {}, "invalid-message"),
    ],
    ids=["too long", "empty", "brotli", "text", "of nothing", "nested"],
)
async def test_a_body_that_is_no_archive_is_refused(server, content, headers, code):
    before = await server.inventory()
    answer = await server.operator.post("/v1/runs/import", content=content, headers=JSON | headers)
    assert answer.json()["code"] == code, answer.text
    assert await server.inventory() == before


async def test_a_packed_body_is_one_whole_stream(server):
    run_id, _ = await a_history(server, rounds_held=1)
    packed = gzip.compress(json.dumps(await document_of(server, run_id)).encode())
    headers = JSON | {"Content-Encoding": "gzip"}
    for body, status in ((packed[:-1], 422), (packed + b"x", 422), (packed * 2, 422), (packed, 201)):
        answer = await server.operator.post("/v1/runs/import", content=body, headers=headers)
        assert answer.status_code == status, answer.text


async def test_a_server_says_which_tensors_it_has(server):
    digest = await server.store_params()
    assert (await server.operator.head(f"/v1/tensors/{digest}")).status_code == 204
    assert (await server.operator.head(f"/v1/tensors/{'0' * 64}")).status_code == 404


async def test_tensors_that_were_asked_about_are_spared_for_as_long_as_if_they_had_just_come(server):
    await server.service.housekeeping.look()  # else the sweep of the start may come between
    digest = await server.store_params()
    path, sweep = f"/v1/tensors/{digest}", server.service.housekeeping.sweep
    await sweep()
    assert (await server.operator.head(path)).status_code == 204
    await sweep()
    assert server.stores.blobs.size(digest) is not None
    await sweep()
    assert (await server.operator.head(path)).status_code == 404


# --- long histories -------------------------------------------------------------------------------


async def a_long_history(server, rounds):
    """The document of a run of `fed-sophia-shared` with so many rounds, each of other numbers."""
    run_id, _ = await a_history(server, rounds_held=1)
    document = await document_of(server, run_id)
    _, held = document["rounds"]
    first, last = document["versions"]
    document["spec"]["rounds"] = rounds + 1
    document["rounds"] = [
        held
        | {"round": number, "base_version": number - 1, "version": number}
        | dict.fromkeys(("opened_ms", "ended_ms", "deadline_ms"), 1763938000000 + number * 1000)
        | {"bytes_up": 10**7 + 7919 * number, "bytes_down": 10**7 + 6101 * number}
        | {"metrics": dict.fromkeys(("test_loss", "test_accuracy", "loss"), number * 0.6180339887 % 1)}
        for number in range(1, rounds + 1)
    ]

    def tensors(number):
        return {bundle: digest_of([f"{bundle} {number}".encode()]) for bundle in last["tensors"]}

    document["versions"] = [first] + [
        {"version": number, "tensors": tensors(number), "created_ms": 1_763_938_000_000 + number * 1_000}
        for number in range(1, rounds)
    ]
    document["versions"].append(last | {"version": rounds})
    return parse(RunArchive, document | {"included": [rounds]})


async def test_ten_thousand_rounds_go_through_with_the_limits_as_they_are(server):
    archive = await a_long_history(server, 10_000)
    assert len(archive.model_dump_json()) > server.service.settings.max_json_bytes
    async with operator_of(server) as client:
        started = time.monotonic()
        run = await client.import_run(archive)
        assert time.monotonic() - started < 30
        rounds = await client.rounds(run.run_id)
        again = await archive_of(client, run.run_id, "last")
    assert (run.round, run.version, len(rounds)) == (10_000, 10_000, 10_000)
    assert again.model_dump(exclude={"status"}) == archive.model_dump(exclude={"status"})


async def test_a_history_that_is_too_long_names_the_setting_to_raise(start_server, tmp_path):
    small = await start_server(directory=tmp_path, max_json_bytes=5_000)
    archive = await a_long_history(small, 100)
    async with operator_of(small) as client:
        with pytest.raises(MessageTooLarge, match="FED_SOPHIA_MAX_JSON_BYTES"):
            await client.import_run(archive)


async def test_tensors_that_go_before_their_headers_are_checked_are_missed_by_name(server, tmp_path):
    run_id, _ = await a_history(server)
    document = await document_of(server, run_id)

    class LosingFirst(FileBlobs):
        def read_into(self, digest, offset, buffer):
            self.delete(digest)
            super().read_into(digest, offset, buffer)

    runner = a_runner_on(LosingFirst(tmp_path), server)
    with pytest.raises(UnknownTensors, match="nothing is stored"):
        await store_run(runner, parse(RunArchive, document))
