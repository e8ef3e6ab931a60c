# SPDX-License-Identifier: Apache-2.0
"""What the server has said survives a power cut: it asks the disk first, and speaks afterwards.

The order is read from the system calls of a real server that receives one update over HTTP.
"""

import asyncio
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from protocol.codec import encode_bundle
from protocol.messages import RunSpec, RunSummary, TensorSpec
from tests.system.power.trace import Call, TracedServer, calls_in
from tests.system.raw_worker import RawWorker, Receipt

DATABASE_LOG = "/records.sqlite-wal"
WITHIN_S = 60.0


@pytest.fixture
def tracing(tmp_path: Path, require_part: Callable[[bool, str], None]) -> None:
    """Skips where no process can be traced."""
    require_part(shutil.which("strace") is not None, "strace")
    probe = tmp_path / "probe"
    subprocess.run(["strace", "-D", "-o", str(probe), "true"], capture_output=True, timeout=60, check=False)
    traced = probe.exists() and "exited with 0" in probe.read_text()
    require_part(traced, "permission to trace a process")


@pytest.fixture
async def server(tmp_path: Path, tracing: None) -> AsyncIterator[TracedServer]:
    process = TracedServer(tmp_path / "server")
    process.data_dir.mkdir()
    try:
        await process.start()
        yield process
    finally:
        await process.end(signal.SIGKILL)


async def one_round(server: TracedServer) -> tuple[Receipt, RunSummary]:
    """A run of one round and one worker; its receipt when it came, and the run at its end."""
    params = {"w": np.full((3, 40), 0.5, np.float32)}
    async with server.operator() as operator:
        spec = RunSpec(
            name="traced",
            task="towards-one",
            algorithm="fed-sophia-shared",
            model=(TensorSpec(name="w", shape=(3, 40)),),
            params_digest=await operator.put_tensors(encode_bundle("params", params)),
            rounds=1,
            local_steps=2,
            cohort_size=1,
            quorum=1,
        )
        run_id = (await operator.create_run(spec)).run_id
    token = await server.join_token()

    def work() -> Receipt:
        with httpx.Client(base_url=server.url, timeout=20) as client:
            worker = RawWorker(client)
            worker.enrol(token, "traced", ["towards-one"])
            assignment = worker.next_assignment()
            received = worker.deliver(assignment, worker.prepare(assignment))
            until = time.monotonic() + WITHIN_S
            while worker.receipt(assignment)["outcome"] == "pending" and time.monotonic() < until:
                time.sleep(0.05)
            return received

    received = await asyncio.to_thread(work)
    return received, await server.run_ended(run_id, WITHIN_S)


def after(calls: list[Call], earlier: Call, what: str, wanted: Callable[[Call], bool]) -> Call:
    """The first such call that began when the earlier one had ended."""
    found = next((call for call in calls if call.began > earlier.ended and wanted(call)), None)
    assert found is not None, f"no {what} after {earlier.name}({earlier.text[:200]})"
    return found


def first(calls: list[Call], what: str, wanted: Callable[[Call], bool]) -> Call:
    found = next(filter(wanted, calls), None)
    assert found is not None, what
    return found


def stored(calls: list[Call], digest: str) -> Call:
    """File, name, directory: gives the last of the three syncs and renames that store these bytes."""
    rename = first(
        calls, f"rename to {digest}", lambda call: call.is_rename_to(f"/blobs/{digest[:2]}/{digest}")
    )
    staged = rename.text.split('"')[1]
    file = first(calls, f"sync of {staged}", lambda call: call.is_sync(staged))
    assert file.ended < rename.began, "the bytes are synced before they have their name"
    return after(calls, rename, "sync of the directory", lambda call: call.is_sync(f"/blobs/{digest[:2]}"))


def committed(calls: list[Call], earlier: Call) -> Call:
    """The sync of the database's log that follows the next write to it."""
    write = after(calls, earlier, "write to the log", lambda call: call.is_write_to(DATABASE_LOG))
    return after(calls, write, "sync of the log", lambda call: call.is_sync(DATABASE_LOG))


async def test_each_word_of_the_server_is_on_the_disk_before_it_is_said(server: TracedServer) -> None:
    receipt, run = await one_round(server)
    assert await server.end(signal.SIGTERM) == 0
    calls = calls_in(server.trace)

    offer = first(calls, "the answer to the declaration", lambda call: call.is_answer('"upload_url"'))
    answer = after(calls, offer, "answer to the upload", lambda call: call.is_answer("HTTP/1.1 200"))
    assert committed(calls, stored(calls, receipt["digest"])).ended < answer.began, "the receipt is said last"

    counted = first(calls, "the outcome", lambda call: call.is_answer('"counted"'))
    assert set(run.tensors) == {"params", "direction", "hessian"}
    in_store = max((stored(calls, digest) for digest in run.tensors.values()), key=lambda call: call.ended)
    assert committed(calls, in_store).ended < counted.began, "the new version is told of last"
