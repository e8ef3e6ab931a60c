# SPDX-License-Identifier: Apache-2.0
"""A worker enrols, waits and pulls while its task is loaded; a task that cannot be loaded ends it."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from protocol.errors import DataUnavailable, FedSophiaError, InvalidTask, InvalidUsage
from tests.worker.small_server import a_server, evaluation, training
from tests.worker.workplace import StubTrainer, Workplace
from worker.agent import run_worker
from worker.loading import Built, loading
from worker.options import SwarmOptions, WorkerOptions
from worker.swarm import run_swarm

ROOT = Path(__file__).parents[2]
NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens there


def no_data() -> DataUnavailable:
    return DataUnavailable("digits are not here")


class Build:
    """Builds one trainer, or fails, when it is allowed to."""

    def __init__(self, trainer: StubTrainer | None = None, error: Exception | None = None) -> None:
        self.trainer = trainer or StubTrainer()
        self.may_end = threading.Event()
        self._error = error

    def __call__(self) -> Built:
        assert self.may_end.wait(10)
        if self._error is not None:
            raise self._error
        return "digits", [self.trainer]

    async def end(self) -> None:
        self.may_end.set()


async def life(place: Workplace, build: Build, name: str | None = "digits") -> None:
    async with loading(build, name) as task:
        await task.name()
        await place.work(task.trainer(0), 1, task.failure)


def never_answering(then: Callable[[], object]) -> Callable[[], "asyncio.Future[httpx.Response | None]"]:
    async def hook() -> httpx.Response | None:
        then()
        return await asyncio.get_running_loop().create_future()

    return hook  # type: ignore[return-value]  # a coroutine function is as good as what it gives


async def test_it_enrols_waits_and_pulls_while_its_task_is_loaded_and_then_trains(tmp_path: Path):
    server, build = a_server(training(1)), Build()
    server.after["tensors_of"] = build.end

    await life(Workplace(tmp_path, server), build)

    assert build.trainer.trained == ["a-1"]
    assert server.asked.index("tensors_of") < server.asked.index("declare")
    assert "a-1" in server.received


async def test_what_is_trained_on_is_known_once_the_task_is_loaded_and_not_before() -> None:
    build, asked = Build(), threading.Event()

    def device() -> str:
        asked.set()
        return "cpu"

    async with loading(build, "digits", device) as task:
        telling = asyncio.ensure_future(task.device())
        await asyncio.sleep(0)
        assert not telling.done() and not asked.is_set()
        build.may_end.set()
        assert await telling == "cpu"
    async with loading(build, "digits") as task:
        assert await task.device() is None


async def test_an_evaluator_measures_once_its_task_is_loaded(tmp_path: Path):
    server, build = a_server(evaluation(1)), Build()
    server.after["tensors_of"] = build.end

    await life(Workplace(tmp_path, server), build)

    assert [report["num_examples"] for report in server.metrics] == [7]


@pytest.mark.parametrize("at", ["enrol", "heartbeat", "next"])
@pytest.mark.parametrize("error", [no_data(), InvalidTask("digits: KeyError"), InvalidUsage("no such part")])
async def test_a_task_that_cannot_be_loaded_ends_a_worker_that_waits_for_an_answer(
    tmp_path: Path, at: str, error: FedSophiaError
):
    server, build = a_server(), Build(error=error)
    server.before[at] = never_answering(build.may_end.set)

    with pytest.raises(type(error)) as raised:
        await life(Workplace(tmp_path, server), build)

    assert raised.value is error


async def test_a_task_that_cannot_be_loaded_ends_a_worker_that_tries_again_and_again(tmp_path: Path):
    server, build = a_server(), Build(error=no_data())

    async def away() -> httpx.Response | None:
        if server.asked.count("next") == 3:
            build.may_end.set()
        await asyncio.sleep(0)  # this place's pauses take no time: let others have a turn
        raise httpx.ConnectError("refused")

    server.before["next"] = away
    with pytest.raises(DataUnavailable):
        await life(Workplace(tmp_path, server), build)


async def test_what_was_to_be_done_by_a_task_that_cannot_be_loaded_is_declined_with_the_reason(
    tmp_path: Path,
):
    server, build = a_server(training(1)), Build(error=no_data())
    server.before["tensors_of"] = never_answering(build.may_end.set)  # also in the middle of a pull

    with pytest.raises(DataUnavailable):
        await life(Workplace(tmp_path, server), build)

    assert server.declined == {"a-1": "data-unavailable: digits are not here"}


async def test_a_trainer_that_waits_for_its_making_declines_when_that_fails(tmp_path: Path):
    server, build = a_server(training(1)), Build(error=no_data())
    place = Workplace(tmp_path, server)
    server.after["tensors_of"] = build.end

    with pytest.raises(DataUnavailable):
        await life(place, build)

    assert server.declined == {"a-1": "data-unavailable: digits are not here"}
    assert server.asked.count("next") == 1


async def test_it_ends_too_if_nobody_hears_that_it_declines(tmp_path: Path):
    server, build = a_server(training(1)), Build(error=no_data())
    server.before["tensors_of"] = never_answering(build.may_end.set)

    async def away() -> httpx.Response | None:
        raise httpx.ConnectError("refused")

    server.before["decline"] = away
    with pytest.raises(DataUnavailable):
        await life(Workplace(tmp_path, server), build)
    assert server.asked.count("decline") == 1


async def test_a_worker_that_ended_so_is_the_same_one_at_its_next_start(tmp_path: Path):
    server, broken = a_server(training(1)), Build(error=no_data())
    place = Workplace(tmp_path, server)
    server.before["next"] = never_answering(broken.may_end.set)
    with pytest.raises(DataUnavailable):
        await life(place, broken)

    del server.before["next"]
    place.join_token = None
    mended = Build()
    mended.may_end.set()
    await life(place, mended)
    assert len(server.enrolments) == 1
    assert "a-1" in server.received


async def test_a_task_that_tells_its_own_name_is_loaded_before_anything_is_asked(tmp_path: Path):
    server, build = a_server(training(1)), Build(error=InvalidTask("mine.py: NameError"))
    place = Workplace(tmp_path / "state", server)
    living = asyncio.create_task(life(place, build, name=None))
    await asyncio.sleep(0)
    assert not living.done()
    build.may_end.set()
    with pytest.raises(InvalidTask, match="NameError"):
        await living
    assert server.asked == []
    assert not place.state_dir.exists()


async def test_cancelled_while_its_task_is_loaded_it_ends_when_the_thread_has(tmp_path: Path):
    server, build = a_server(), Build()
    asked = asyncio.Event()
    server.before["next"] = never_answering(asked.set)
    living = asyncio.create_task(life(Workplace(tmp_path, server), build))
    await asked.wait()
    for _ in range(2):
        living.cancel()
        await asyncio.sleep(0)
    assert not living.done()

    build.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await living


# --- the task's name -----------------------------------------------------------------------------


def options(folder: Path, task: str, partition: str | None = None) -> WorkerOptions:
    return WorkerOptions(NOBODY, "t", "mine", folder / "state", task, partition=partition, device="cpu")


@pytest.mark.parametrize(
    ("task", "partition", "error"),
    [("digit", None, "task 'digit': expected one of"), ("digits", "shard:2", "partition 'shard:2'")],
)
async def test_what_does_not_exist_is_refused_before_anything_is_done(
    tmp_path: Path, task: str, partition: str | None, error: str
):
    with pytest.raises((InvalidTask, InvalidUsage), match=error):
        await run_worker(options(tmp_path, task, partition), lambda _: None)
    with pytest.raises((InvalidTask, InvalidUsage), match=error):
        await run_swarm(
            SwarmOptions(NOBODY, "t", tmp_path / "state", task, 2, partition=partition or "iid"),
            lambda _: None,
        )
    assert not (tmp_path / "state").exists()


async def test_a_file_of_ones_own_that_is_broken_enrols_nobody(tmp_path: Path):
    path = tmp_path / "mine.py"
    path.write_text("import nothing_of_this_name")
    with pytest.raises(InvalidTask, match="running it failed: ModuleNotFoundError"):
        await run_worker(options(tmp_path, str(path)), lambda _: None)
    assert not (tmp_path / "state").exists()


# --- what loading costs --------------------------------------------------------------------------

PULLS = """
import asyncio, sys, threading
from pathlib import Path

from tests.worker.small_server import a_server, training
from tests.worker.workplace import StubTrainer, Workplace
from worker.loading import loading

async def main():
    server, may_end = a_server(training(1)), threading.Event()

    async def pulled():
        print(*server.asked, "torch" in sys.modules)
        may_end.set()

    def build():
        may_end.wait(30)
        return "digits", [StubTrainer()]

    server.after["tensors_of"] = pulled
    async with loading(build, "digits") as task:
        await Workplace(Path(sys.argv[1]), server).work(task.trainer(0), 1, task.failure)

asyncio.run(main())
"""


def test_a_worker_that_has_enrolled_polled_and_pulled_has_not_needed_torch(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", PULLS, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "enrol token heartbeat next tensors_of False\n"), done.stderr
