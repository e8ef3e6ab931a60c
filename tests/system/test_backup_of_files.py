# SPDX-License-Identifier: Apache-2.0
"""One server with SQLite and files is backed up at work and restored, as the how-to says."""

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import torch

from fed_sophia.new_run import RunRequest, begin
from protocol.errors import Unauthenticated
from protocol.messages import Retention, RunStatus
from tests.system.cohort import a_cohort
from tests.system.conftest import ServerProcess, running
from worker.agent import serve
from worker.training import Trainer

WORKERS = 4
ROUNDS = 5
WITHIN_S = 60.0


class Cohort:
    """Workers of this process, begun and ended one by one."""

    def __init__(self, url: str, token: str, folder: Path) -> None:
        torch.set_num_threads(1)
        self._all = list(a_cohort(url, token, folder, WORKERS, None))
        self.at_work: dict[int, asyncio.Task[None]] = {}

    def begin(self, number: int) -> None:
        options, task, mine = self._all[number]
        trainer = Trainer(task, mine, torch.device("cpu"))
        working = serve(options, "digits", trainer, lambda _event: None)
        self.at_work[number] = asyncio.create_task(working)

    async def end(self) -> None:
        for working in self.at_work.values():
            working.cancel()
        await asyncio.gather(*self.at_work.values(), return_exceptions=True)


@asynccontextmanager
async def a_server(folder: Path, port: int | None = None) -> AsyncIterator[ServerProcess]:
    server = ServerProcess(folder)
    if port is not None:
        server.port, server.url = port, f"http://127.0.0.1:{port}"
    async with running(server):
        yield server


async def begin_run(server: ServerProcess) -> str:
    request = RunRequest(
        task="digits",
        name="backed-up",
        rounds=ROUNDS,
        policies={"cohort_size": WORKERS, "quorum": WORKERS, "retention": Retention(update_rounds=ROUNDS)},
        algorithm="fed-sophia-shared",
        local_steps=3,
        seed=3,
    )
    async with server.operator() as operator:
        return (await begin(operator, request)).run_id


async def until(server: ServerProcess, run_id: str, members: int = 0, number: int = 0) -> None:
    """Come back once the run has so many workers, and is in this round."""
    async with server.operator() as operator, asyncio.timeout(WITHIN_S):
        while (run := await operator.run(run_id)).members < members or run.round < number:
            await asyncio.sleep(0.02)


def back_up(data_dir: Path, backup: Path) -> None:
    """The database by SQLite's own way to copy one in use, what it names after it; then the credentials."""
    backup.mkdir()
    with (
        closing(sqlite3.connect(data_dir / "records.sqlite")) as source,
        closing(sqlite3.connect(backup / "records.sqlite")) as copy,
    ):
        source.backup(copy)
    shutil.copytree(data_dir / "blobs", backup / "blobs")
    shutil.copy(data_dir / "operator.key", backup)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The digests with which the run ends where nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")

    async def undisturbed() -> dict[str, str]:
        async with a_server(folder / "server") as server:
            cohort = Cohort(server.url, await server.join_token(WORKERS), folder)
            run_id = await begin_run(server)
            for number in range(WORKERS):
                cohort.begin(number)
            ended = await server.run_ended(run_id)
            await cohort.end()
            return dict(ended.tensors)

    return asyncio.run(undisturbed())


async def test_workers_go_on_after_a_backup_of_a_server_at_work_is_restored(
    expected: dict[str, str], tmp_path: Path
) -> None:
    async with a_server(tmp_path / "server") as server:
        cohort = Cohort(server.url, await server.join_token(WORKERS), tmp_path)
        run_id = await begin_run(server)
        for number in range(WORKERS):
            cohort.begin(number)
        await until(server, run_id, number=2)
        back_up(server.data_dir, tmp_path / "backup")
        await until(server, run_id, number=4)
        await server.kill()

    async with a_server(tmp_path / "backup", server.port) as restored:
        ended = await restored.run_ended(run_id)
        assert not any(working.done() for working in cohort.at_work.values())
        await cohort.end()
    assert (ended.status, ended.round, ended.version) == (RunStatus.FINISHED, ROUNDS, ROUNDS)
    assert ended.tensors == expected


async def test_a_worker_that_enrolled_after_the_backup_ends_and_enrols_again_at_its_next_start(
    expected: dict[str, str], tmp_path: Path
) -> None:
    async with a_server(tmp_path / "server") as server:
        cohort = Cohort(server.url, await server.join_token(WORKERS), tmp_path)
        run_id = await begin_run(server)
        for number in range(WORKERS - 1):
            cohort.begin(number)
        await until(server, run_id, members=WORKERS - 1)
        back_up(server.data_dir, tmp_path / "backup")
        cohort.begin(WORKERS - 1)
        await until(server, run_id, number=2)
        await server.kill()

    async with a_server(tmp_path / "backup", server.port) as restored:
        with pytest.raises(Unauthenticated):
            await asyncio.wait_for(cohort.at_work[WORKERS - 1], WITHIN_S)
        cohort.begin(WORKERS - 1)
        ended = await restored.run_ended(run_id)
        await cohort.end()
    assert ended.tensors == expected
