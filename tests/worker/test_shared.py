# SPDX-License-Identifier: Apache-2.0
"""Workers of one process: each asks for itself, few at a time, and what they hold is held once."""

import asyncio
import gc
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from protocol.codec import digest_of
from tests.worker.small_server import JOIN_TOKEN, PARAMS, SmallServer, a_server, message_of, problem, training
from tests.worker.workplace import StubTrainer
from worker.agent import serve_aside
from worker.aside import InThread
from worker.global_state import GlobalState
from worker.options import WorkerOptions
from worker.patience import Pauses
from worker.shared import Shared

DIGEST = digest_of([message_of(PARAMS)])


async def test_each_worker_fetches_for_itself_and_the_memory_is_spent_once():
    asked: list[str] = []

    async def fetch(run_id: str, digest: str, at_most_bytes: int | None) -> memoryview:
        asked.append(digest)
        return memoryview(message_of(PARAMS))

    shared = Shared()
    states = [GlobalState(fetch, shared.held) for _ in range(3)]
    pulled = [await state.pull("run-1", {"params": DIGEST}) for state in states]

    assert asked == [DIGEST] * 3
    assert all(each["params"] is pulled[0]["params"] for each in pulled)
    assert list(shared.held.by_digest) == [DIGEST]


async def test_of_many_workers_that_wait_none_holds_the_version_it_had_last():
    versions = [message_of({"w": np.full(3, number, np.float32)}) for number in range(20)]
    messages = {digest_of([message]): message for message in versions}
    asked: list[str] = []

    async def fetch(run_id: str, digest: str, at_most_bytes: int | None) -> memoryview:
        asked.append(digest)
        return memoryview(messages[digest])

    shared = Shared()
    workers = [GlobalState(fetch, shared.held) for _ in messages]
    for worker, digest in zip(workers, messages, strict=True):
        await worker.pull("run-1", {"params": digest})
        worker.let_go()
    gc.collect()
    newest = list(messages)[-1]
    assert list(shared.held.by_digest) == [newest]

    await workers[-1].pull("run-1", {"params": newest})
    assert asked.count(newest) == 1, "it has fetched this one"
    await workers[0].pull("run-1", {"params": newest})
    assert asked.count(newest) == 2, "each fetches for itself"


async def test_what_a_worker_at_work_holds_is_not_decoded_again_for_others_while_runs_take_turns():
    of_one, of_other = message_of(PARAMS), message_of({"w": np.zeros(3, np.float32)})

    async def fetch(run_id: str, digest: str, at_most_bytes: int | None) -> memoryview:
        return memoryview(of_one if digest == DIGEST else of_other)

    shared = Shared()
    at_work, another, later = (GlobalState(fetch, shared.held) for _ in range(3))
    state = await at_work.pull("run-1", {"params": DIGEST})
    await another.pull("run-2", {"params": digest_of([of_other])})
    another.let_go()
    assert (await later.pull("run-1", {"params": DIGEST}))["params"] is state["params"]


async def test_a_worker_lets_go_of_an_old_version_before_it_fetches_a_new_one():
    versions = [message_of({"w": np.full(3, number, np.float32)}) for number in range(2)]
    messages = {digest_of([message]): message for message in versions}
    shared, held_meanwhile = Shared(), []

    async def fetch(run_id: str, digest: str, at_most_bytes: int | None) -> memoryview:
        gc.collect()
        held_meanwhile.append(len(shared.held.by_digest))
        return memoryview(messages[digest])

    worker = GlobalState(fetch, shared.held)
    for digest in messages:
        await worker.pull("run-1", {"params": digest})
        worker.let_go()
    assert held_meanwhile == [0, 0]


@dataclass
class Counter:
    """How many are in some place, and how many were at most."""

    here: int = 0
    most: int = 0

    async def __call__(self) -> None:
        self.here += 1
        self.most = max(self.most, self.here)
        for _ in range(20):  # others could come in
            await asyncio.sleep(0)
        self.here -= 1


async def on_a_cpu() -> str:
    return "cpu"


async def work_of(server: SmallServer, folder: Path, shared: Shared) -> None:
    options = WorkerOptions(
        "http://fed.example", str(JOIN_TOKEN), folder.name, folder, "digits", max_assignments=1
    )
    pauses = Pauses(sleep=lambda _: asyncio.sleep(0), jitter=lambda: 0.5)
    await serve_aside(
        options,
        "digits",
        InThread(StubTrainer(), None),
        lambda _event: None,
        pauses,
        transport=server,
        device=on_a_cpu,
        shared=shared,
    )


@pytest.mark.parametrize("at", ["enrol", "heartbeat", "tensors_of", "upload"])
async def test_no_more_come_fetch_or_send_at_a_time_than_share_a_turn(tmp_path: Path, at: str):
    at_once, counter = 2, Counter()
    shared = Shared(coming=asyncio.Semaphore(at_once), moving=asyncio.Semaphore(at_once))
    servers = [a_server(training(1)) for _ in range(6)]
    for server in servers:
        server.before[at] = counter
    async with asyncio.timeout(20), asyncio.TaskGroup() as workers:
        for number, server in enumerate(servers):
            workers.create_task(work_of(server, tmp_path / f"w{number}", shared))
    assert all("a-1" in server.received for server in servers)
    assert 1 <= counter.most <= at_once


async def test_who_waits_for_an_operators_approval_holds_up_nobody(tmp_path: Path):
    async def pending() -> httpx.Response:
        return problem("approval-pending", 403)

    shared = Shared(coming=asyncio.Semaphore(1))
    servers = [a_server(training(1)) for _ in range(3)]
    for server in servers:
        server.before["heartbeat"] = pending
    async with asyncio.timeout(20):
        works = [
            asyncio.create_task(work_of(server, tmp_path / f"w{number}", shared))
            for number, server in enumerate(servers)
        ]
        while not all(server.enrolments for server in servers):
            await asyncio.sleep(0)
        for server in servers:  # the operator approves
            del server.before["heartbeat"]
        await asyncio.gather(*works)
    assert all("a-1" in server.received for server in servers)
