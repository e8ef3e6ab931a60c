# SPDX-License-Identifier: Apache-2.0
"""What ended runs leave behind on a device is removed, and nothing else is."""

from pathlib import Path

import httpx
import numpy as np

from protocol.messages import RunStatus
from tests.worker.small_server import a_server, in_turn, problem, training
from tests.worker.workplace import StubTrainer, Workplace
from worker.agent import LOOK_EVERY_S
from worker.local_state import Kept, LocalState

KEPT = Kept(3, {"m": {"w": np.ones(2, np.float32)}})


def keep(place: Workplace, *runs: str) -> LocalState:
    state = LocalState(place.state_dir / "local_state")
    for run_id in runs:
        state.save(run_id, 1, KEPT)
    return state


def nothing_to_do(times: int) -> list[httpx.Response]:
    return [httpx.Response(204) for _ in range(times)]


async def test_an_idle_worker_forgets_ended_runs_and_keeps_what_may_be_asked_for_again(tmp_path: Path):
    server = a_server(training(1))
    server.runs = {"over": RunStatus.FINISHED, "failed": RunStatus.FAILED, "paused": RunStatus.PAUSED}
    server.before["next"] = in_turn(*nothing_to_do(3))
    place = Workplace(tmp_path, server)
    state = keep(place, "over", "failed", "paused", "unknown")

    await place.work(StubTrainer(), max_assignments=1)

    assert set(state.runs()) == {"paused", "unknown", "run-1"}
    assert not list((tmp_path / "local_state").glob("over*"))
    assert server.asked.count("show") == 4, "rarely: once in an hour, not once a poll"


async def test_it_looks_again_after_an_hour(tmp_path: Path):
    server = a_server(training(1))
    server.runs = {"over": RunStatus.RUNNING}
    hours = iter(range(10**6))
    server.before["next"] = in_turn(*nothing_to_do(3))
    place = Workplace(tmp_path, server, clock_s=lambda: next(hours) * LOOK_EVERY_S)
    keep(place, "over")

    await place.work(StubTrainer(), max_assignments=1)

    assert server.asked.count("show") == 3


async def test_a_server_that_does_not_answer_loses_a_worker_nothing(tmp_path: Path):
    server = a_server(training(1))
    server.before["next"] = in_turn(*nothing_to_do(1))
    server.before["show"] = in_turn(problem("internal", 500))
    place = Workplace(tmp_path, server)
    state = keep(place, "over")

    await place.work(StubTrainer(), max_assignments=1)

    assert "over" in state.runs()
