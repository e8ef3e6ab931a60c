# SPDX-License-Identifier: Apache-2.0
"""The worker's loop when the server, the way to it, or the disk behaves badly."""

import asyncio
import itertools
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest

from protocol.codec import Bundle, NamedTensor, digest_of, encode_bundle, encode_message
from protocol.errors import (
    AssertionRefused,
    InvalidUsage,
    StateNotWritable,
    Unauthenticated,
    WorkerExpired,
    WorkerRevoked,
)
from protocol.messages import Assignment
from tests.worker.small_server import PARAMS, SmallServer, a_server, evaluation, in_turn, problem, training
from tests.worker.workplace import StubTrainer, Workplace
from worker.durable import sole_user
from worker.events import Evaluated

# --- beside a training -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        problem("not-found", 404),
        problem("round-closed"),
        problem("forbidden", 403),
        problem("digest-mismatch", 400),
        httpx.Response(418),
        httpx.ConnectError("refused"),
    ],
    ids=["not found", "round closed", "forbidden", "digest mismatch", "no problem", "away"],
)
async def test_a_heartbeat_that_is_refused_neither_ends_a_training_nor_begins_a_second(
    tmp_path: Path, answer: httpx.Response | Exception
):
    server = a_server(training(1))
    heard = threading.Semaphore(0)

    async def refuse() -> httpx.Response | None:
        if "next" not in server.asked:
            return None  # the first word of a worker that has started
        heard.release()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def until_refused_three_times(stop: threading.Event) -> None:
        assert all(heard.acquire(timeout=10) for _ in range(3))

    server.before["heartbeat"] = refuse
    place = Workplace(tmp_path, server, heartbeat_s=0.001)
    trainer = StubTrainer(works=until_refused_three_times)

    await place.work(trainer, max_assignments=1)

    assert trainer.trained == ["a-1"]
    assert trainer.most_at_work == 1
    assert "a-1" in server.received
    assert place.refusals() == []


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("worker-revoked", 403, WorkerRevoked),
        ("worker-expired", 403, WorkerExpired),
        ("assertion-refused", 401, AssertionRefused),
        ("unauthenticated", 401, Unauthenticated),
    ],
)
async def test_a_worker_the_server_has_no_more_stops_its_training_and_then_ends(
    tmp_path: Path, code: str, status: int, error: type[Exception]
):
    server = a_server(training(1))

    async def gone() -> None:
        if "next" in server.asked:
            server.tokens.clear()

    server.before["heartbeat"] = gone
    server.before["token"] = in_turn(None, problem(code, status))
    place = Workplace(tmp_path, server, heartbeat_s=0.001)
    trainer = StubTrainer(works=lambda stop: stop.wait(10))

    with pytest.raises(error):
        await place.work(trainer, max_assignments=1)
    assert trainer.at_work == 0


@pytest.mark.parametrize("assignment", [training(1), evaluation(4)], ids=["training", "evaluating"])
async def test_a_worker_that_is_cancelled_ends_when_its_work_has_and_leaves_nothing_half_done(
    tmp_path: Path, assignment: Assignment
):
    server = a_server(assignment)
    loop = asyncio.get_running_loop()
    begun = asyncio.Event()

    def until_stopped(stop: threading.Event) -> None:
        loop.call_soon_threadsafe(begun.set)
        assert stop.wait(10), "work is told to stop"

    place = Workplace(tmp_path, server)
    trainer = StubTrainer(works=until_stopped)
    life = asyncio.create_task(place.work(trainer, max_assignments=1))
    await begun.wait()
    life.cancel()
    with pytest.raises(asyncio.CancelledError):
        await life

    assert trainer.at_work == 0
    assert place.outbox() == []
    assert place.kept_step() is None
    await place.work(StubTrainer(), max_assignments=1)
    assert "a-1" in server.received or server.metrics


# --- asking for work ---------------------------------------------------------------------------


async def test_one_who_says_at_once_that_there_is_nothing_is_asked_ever_more_rarely(tmp_path: Path):
    server = a_server(training(1))
    server.before["next"] = in_turn(*[httpx.Response(204)] * 5)
    place = Workplace(tmp_path, server)

    await place.work(StubTrainer(), max_assignments=1)

    assert place.slept == [0.25, 0.5, 1, 2, 4]
    assert "a-1" in server.received


async def test_one_who_waits_before_saying_that_there_is_nothing_is_asked_again_at_once(tmp_path: Path):
    server = a_server(training(1))
    server.before["next"] = in_turn(*[httpx.Response(204)] * 5)
    ticks = itertools.count(step=30)
    place = Workplace(tmp_path, server, clock_s=lambda: float(next(ticks)))

    await place.work(StubTrainer(), max_assignments=1)

    assert place.slept == []


async def test_a_version_that_is_offered_again_after_its_report_is_not_measured_in_a_tight_circle(
    tmp_path: Path,
):
    place = Workplace(tmp_path, a_server(*[evaluation(4)] * 3, evaluation(5)))

    await place.work(StubTrainer(), max_assignments=4)

    assert len(place.told(Evaluated)) == 4
    assert place.slept == [0.5, 1]


# --- transfers ---------------------------------------------------------------------------------

DAMAGE = [
    ("digest-mismatch", 400),
    ("size-mismatch", 400),
    ("malformed-tensor-message", 400),
    ("truncated-tensor-message", 400),
    ("not-found", 404),
]


@pytest.mark.parametrize(("code", "status"), [*DAMAGE, ("upload-interrupted", 408)])
async def test_a_body_that_came_to_harm_is_declared_and_sent_again_untrained(
    tmp_path: Path, code: str, status: int
):
    server = a_server(training(1))
    server.before["upload"] = in_turn(problem(code, status))
    place = Workplace(tmp_path, server)
    trainer = StubTrainer()

    await place.work(trainer, max_assignments=1)

    assert trainer.trained == ["a-1"]
    # one that was cut off is declared at once, to see whether it came any further, and after a pause again
    assert server.asked.count("declare") == (3 if code == "upload-interrupted" else 2)
    first, second = (body for route, body in server.bodies if route == "upload")
    assert first == second == server.received["a-1"]
    assert place.slept == [0.25]


@pytest.mark.parametrize(("code", "status"), DAMAGE)
async def test_a_body_that_comes_to_harm_every_time_is_given_up(tmp_path: Path, code: str, status: int):
    server = a_server(training(1))
    server.before["upload"] = in_turn(*[problem(code, status)] * 9)
    place = Workplace(tmp_path, server)

    await place.work(StubTrainer(), max_assignments=1)

    assert server.asked.count("upload") == 4
    assert place.refusals() == [code]
    assert place.outbox() == []
    assert server.declined == ({} if code == "not-found" else {"a-1": f"{code}: because"})


async def test_an_update_for_an_assignment_the_server_forgot_is_dropped(tmp_path: Path):
    server = a_server(training(1))
    server.before["declare"] = in_turn(*[problem("not-found", 404)] * 9)
    place = Workplace(tmp_path, server)

    await place.work(StubTrainer(), max_assignments=1)

    assert place.refusals() == ["not-found"]
    assert place.outbox() == []


async def test_tensors_that_came_to_harm_are_fetched_again(tmp_path: Path):
    server = a_server(training(1))
    [message] = server.tensors.values()
    server.before["tensors_of"] = in_turn(httpx.Response(200, content=message[:-1] + b"\xff"))
    place = Workplace(tmp_path, server)

    await place.work(StubTrainer(), max_assignments=1)

    assert "a-1" in server.received
    assert server.asked.count("tensors_of") == 2
    assert place.slept == [0.25]


# --- what is pulled ----------------------------------------------------------------------------


def a_server_with(message: list[memoryview], bundle: str = "params") -> tuple[SmallServer, dict[str, str]]:
    server = a_server()
    digests = dict(training().tensors) | {bundle: digest_of(message)}
    server.tensors[digest_of(message)] = b"".join(message)
    return server, digests


def ones(num_values: int) -> Bundle:
    return {"w": np.ones(num_values, np.float32)}


@pytest.mark.parametrize(("num_values", "is_taken"), [(250_000, True), (270_000, False)])
async def test_a_bundle_beside_params_is_taken_up_to_twice_their_size_and_a_mebibyte(
    tmp_path: Path, num_values: int, is_taken: bool
):
    server, digests = a_server_with(encode_bundle("hessian", ones(num_values)), "hessian")
    server.assignments = [training().model_copy(update={"tensors": digests})]
    place = Workplace(tmp_path, server)

    await place.work(StubTrainer(), max_assignments=1)

    assert ("a-1" in server.received) == is_taken
    assert place.refusals() == ([] if is_taken else ["message-too-large"])


async def test_an_assignment_with_more_bundles_than_anyone_needs_is_declined_before_any_is_fetched(
    tmp_path: Path,
):
    server = a_server()
    [digest] = server.tensors
    digests = {"params": digest} | {f"bundle{number}": digest for number in range(8)}
    server.assignments = [training().model_copy(update={"tensors": digests})]

    await Workplace(tmp_path, server).work(StubTrainer(), max_assignments=1)

    assert server.declined == {"a-1": "bundle-mismatch: the assignment names 9 bundles; at most 8 are taken"}
    assert "tensors_of" not in server.asked


async def test_somebodys_update_is_not_taken_for_global_state(tmp_path: Path):
    update = encode_message("update", [NamedTensor("params", name, v) for name, v in PARAMS.items()])
    server, digests = a_server_with(update)
    server.assignments = [training().model_copy(update={"tensors": digests})]

    await Workplace(tmp_path, server).work(StubTrainer(), max_assignments=1)

    assert server.declined == {"a-1": "bundle-mismatch: expected a message of kind state, got update"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
async def test_global_state_that_is_not_finite_is_not_trained_on(tmp_path: Path, value: float):
    server, digests = a_server_with(encode_bundle("params", {"w": np.full(3, value, np.float32)}))
    server.assignments = [training().model_copy(update={"tensors": digests})]
    trainer = StubTrainer()

    await Workplace(tmp_path, server).work(trainer, max_assignments=1)

    assert server.declined == {"a-1": "not-finite: params/w: holds NaN or an infinity"}
    assert trainer.trained == []


async def test_a_version_that_is_not_finite_is_reported_without_metrics(tmp_path: Path):
    server, digests = a_server_with(encode_bundle("params", {"w": np.full(3, np.nan, np.float32)}))
    server.assignments = [evaluation(4).model_copy(update={"tensors": digests})]

    await Workplace(tmp_path, server).work(StubTrainer(), max_assignments=1)

    assert server.metrics == [{"version": 4, "num_examples": 1, "metrics": {}}]


# --- the state directory -----------------------------------------------------------------------


async def test_a_state_directory_in_use_is_named(tmp_path: Path):
    server = a_server(training(1))
    with sole_user(tmp_path), pytest.raises(InvalidUsage, match=str(tmp_path)):
        await Workplace(tmp_path, server).work(StubTrainer(), max_assignments=1)
    assert server.asked == []


async def test_a_worker_holds_its_state_directory_for_as_long_as_it_lives(tmp_path: Path):
    server = a_server()
    asked = asyncio.Event()

    async def note() -> None:
        asked.set()

    server.before["next"] = note
    life = asyncio.create_task(Workplace(tmp_path, server).work(StubTrainer(), max_assignments=1))
    await asked.wait()

    with pytest.raises(InvalidUsage), sole_user(tmp_path):
        raise AssertionError
    life.cancel()
    with pytest.raises(asyncio.CancelledError):
        await life
    with sole_user(tmp_path):
        pass


async def test_no_work_is_asked_for_that_the_disk_could_not_take(tmp_path: Path):
    server = a_server(training(1))
    (tmp_path / ".probe").mkdir()  # stands in for a disk that takes no file

    with pytest.raises(StateNotWritable):
        await Workplace(tmp_path, server).work(StubTrainer(), max_assignments=1)
    assert "next" not in server.asked


async def test_what_was_kept_for_a_run_is_forgotten_when_the_run_has_ended(tmp_path: Path):
    server = a_server(training(1), training(2))
    server.before["declare"] = in_turn(None, problem("run-ended"))
    place = Workplace(tmp_path, server)

    await place.work(StubTrainer(), max_assignments=2)

    assert place.refusals() == ["run-ended"]
    assert list((tmp_path / "local_state").iterdir()) == []


# --- a server that was restored ----------------------------------------------------------------


async def test_a_forgotten_worker_with_a_join_token_enrols_again_with_the_same_key(tmp_path: Path):
    server = a_server(training(1), training(2))
    place = Workplace(tmp_path, server)
    await place.work(StubTrainer(), max_assignments=1)
    server.forget()

    await place.work(StubTrainer(), max_assignments=1)

    first, second = server.enrolments
    assert first["public_key"] == second["public_key"]
    assert list(server.received) == ["a-1", "a-2"]


async def test_a_forgotten_worker_without_a_join_token_says_what_to_do(tmp_path: Path):
    server = a_server(training(1), training(2))
    place = Workplace(tmp_path, server)
    await place.work(StubTrainer(), max_assignments=1)
    server.forget()
    place.join_token = None

    with pytest.raises(Unauthenticated, match="enrolled as w-1: start it once with a fresh join token"):
        await place.work(StubTrainer(), max_assignments=1)
