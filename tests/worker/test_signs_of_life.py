# SPDX-License-Identifier: Apache-2.0
"""How a worker shows that it is there, and how it stays away when it is sent home."""

import asyncio
import threading
from pathlib import Path

import httpx
import pytest

from protocol.messages import Assignment, EvaluationAssignment
from tests.worker.small_server import SmallServer, a_server, evaluation, in_turn, training
from tests.worker.workplace import StubTrainer, Workplace
from worker.events import Reconnecting

OFTEN_S = 0.005
NEVER_S = 3600.0


def heard(server: SmallServer) -> threading.Semaphore:
    """Is released at each heartbeat that the server gets."""
    heartbeats = threading.Semaphore(0)

    async def note() -> None:
        heartbeats.release()

    server.before["heartbeat"] = note
    return heartbeats


@pytest.mark.parametrize("assignment", [training(1), evaluation(4)], ids=["training", "evaluating"])
async def test_a_worker_at_work_is_heard_of_as_often_as_its_assignment_asks(
    tmp_path: Path, assignment: Assignment | EvaluationAssignment
):
    server = a_server(assignment.model_copy(update={"heartbeat_s": OFTEN_S}))
    heartbeats = heard(server)
    place = Workplace(tmp_path, server, heartbeat_s=NEVER_S)
    trainer = StubTrainer(works=lambda stop: all(heartbeats.acquire(timeout=10) for _ in range(5)))

    await place.work(trainer, max_assignments=1)

    assert server.asked.count("heartbeat") >= 5


@pytest.mark.parametrize(
    ("assignment", "travels"),
    [(training(1), "tensors_of"), (evaluation(4), "tensors_of"), (training(1), "upload")],
)
async def test_a_worker_is_heard_of_while_something_travels(
    tmp_path: Path, assignment: Assignment | EvaluationAssignment, travels: str
):
    server = a_server(assignment.model_copy(update={"heartbeat_s": OFTEN_S}))
    heartbeats = heard(server)

    async def slowly() -> None:
        for _ in range(5):
            assert await asyncio.to_thread(heartbeats.acquire, timeout=10)

    server.before[travels] = slowly
    place = Workplace(tmp_path, server, heartbeat_s=NEVER_S)

    await place.work(StubTrainer(), max_assignments=1)

    assert server.asked.count("heartbeat") >= 5


async def test_a_worker_is_heard_of_no_less_often_than_it_would_be_by_itself(tmp_path: Path):
    server = a_server(training(1).model_copy(update={"heartbeat_s": NEVER_S}))
    heartbeats = heard(server)
    place = Workplace(tmp_path, server, heartbeat_s=OFTEN_S)
    trainer = StubTrainer(works=lambda stop: all(heartbeats.acquire(timeout=10) for _ in range(5)))

    await place.work(trainer, max_assignments=1)

    assert server.asked.count("heartbeat") >= 5


async def test_a_worker_that_is_sent_home_comes_back_when_it_was_told_to(tmp_path: Path):
    server = a_server(training(1))
    server.before["next"] = in_turn(httpx.Response(204, headers={"Retry-After": "7"}))
    place = Workplace(tmp_path, server)

    await place.work(StubTrainer(), max_assignments=1)

    assert place.slept == [7.25], "what it was told, and a little more, so that not all come at once"
    [away] = place.told(Reconnecting)
    assert isinstance(away, Reconnecting)
    assert away.wait_s == 7.25
    assert "a-1" in server.received
