# SPDX-License-Identifier: Apache-2.0
"""A small federation whose server and workers may die at any time: begun, watched and asked from outside."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from fed_sophia.new_run import RunRequest, begin
from fed_sophia.operator_client import OperatorClient
from protocol.errors import ServerUnreachable, Unauthenticated
from protocol.messages import RunStatus, RunSummary
from tests.system.conftest import free_port
from tests.system.crash.doomed_server import ServerOrders, be_the_server
from tests.system.crash.doomed_worker import WorkerOrders, be_a_worker
from tests.system.crash.mortal import Mortal
from tests.system.crash.steps import NOBODY, points_in
from worker.events import Waiting
from worker.options import WorkerOptions

WORKERS = 3
ROUNDS = 8
POLL_S = 0.02
ASK_S = 0.1


class Federation:
    """One server and three workers on task `digits`, all processes of their own, all files in one folder."""

    def __init__(self, folder: Path, mortal_server: bool = False, mortal_workers: bool = False) -> None:
        """Args: mortal_…: whether it dies by itself, once at each point."""
        self.folder = folder
        self.data_dir = folder / "server"
        self.data_dir.mkdir(parents=True)
        self.deaths = folder / "deaths"
        self.at_the_end = AsyncExitStack()
        self._operators: dict[str, OperatorClient] = {}
        self.history: list[str] = []
        """Who was killed when, by whoever did it; shown when something goes wrong."""
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        orders = ServerOrders(port, self.data_dir, self.deaths if mortal_server else None)
        self.server = Mortal("server", partial(be_the_server, orders), folder / "server.log")
        self.workers = [self._worker(index, mortal_workers) for index in range(WORKERS)]

    def _worker(self, index: int, mortal: bool) -> Mortal:
        name = f"w{index}"
        options = WorkerOptions(
            server_url=self.url,
            join_token=None,
            name=name,
            state_dir=self.folder / name,
            task="digits",
            partition="shards:2",
            partition_index=index,
            partition_of=WORKERS,
            threads=1,
        )
        orders = WorkerOrders(
            options,
            join_token_file=self.data_dir / "join.token",
            last_round=ROUNDS,
            diary=self.folder / f"{name}.diary",
            receipts=self.folder / f"{name}.receipts",
            deaths=self.deaths if mortal else None,
        )
        return Mortal(name, partial(be_a_worker, orders), self.folder / f"{name}.log")

    @property
    def everybody(self) -> list[Mortal]:
        return [self.server, *self.workers]

    @property
    def killed(self) -> int:
        """How many have died so far."""
        return sum(mortal.killed for mortal in self.everybody)

    # --- life and death ------------------------------------------------------------------------

    def start_workers(self) -> None:
        """Start those that were never started: there is a run, and so a join token."""
        for worker in self.workers:
            if not worker.started:
                worker.start()

    async def stop(self) -> None:
        """Ask everybody to end, workers first."""
        for mortal in (*self.workers, self.server):
            await mortal.end(signal.SIGTERM)

    async def restart_tidily(self) -> None:
        """Stop everybody, start everybody; wait until every worker has found nothing left to do."""
        if self.deaths.exists():
            with self.deaths.open("a") as deaths:
                deaths.write(f"{NOBODY}\n")
        await self.stop()
        diaries = [self.folder / f"{worker.name}.diary" for worker in self.workers]
        said = [len(diary.read_text()) for diary in diaries]
        for mortal in self.everybody:
            mortal.start()
        for diary, length in zip(diaries, said, strict=True):
            while Waiting.__name__ not in diary.read_text()[length:]:
                await self._a_moment()

    async def _a_moment(self, wait_s: float = POLL_S) -> None:
        """Between two looks at what goes on: whoever has died meanwhile lives again."""
        until_s = time.monotonic() + wait_s
        while time.monotonic() < until_s:
            for mortal in self.everybody:
                if mortal.started:
                    mortal.restart_if_dead()
            await asyncio.sleep(POLL_S)

    def obituary(self) -> list[str]:
        """Who died when and where, and what was said last: lines to understand a failure by."""
        lines = ["--- killed", *self.history, "--- points of death", *points_in(self.deaths)]
        for mortal in self.everybody:
            lines += [f"--- {mortal.name}, killed {mortal.killed} times, said last", mortal.last_words()]
        return lines

    # --- runs ----------------------------------------------------------------------------------

    def operator(self) -> OperatorClient:
        """The operator, by the key that stands in the data directory now; open until the end of the test."""
        key = (self.data_dir / "operator.key").read_text().strip()
        if key not in self._operators:
            self._operators[key] = OperatorClient(self.url, key)
            self.at_the_end.push_async_exit(self._operators[key])
        return self._operators[key]

    async def begin(self, name: str, algorithm: str, **policies: object) -> str:
        """Begin a run, as often as it takes; give its id. A run of this name is not begun twice."""
        request = RunRequest(
            task="digits",
            name=name,
            rounds=ROUNDS,
            # what is not kept is deleted while others die
            policies={"cohort_size": WORKERS, "quorum": WORKERS, "retention": {"last": 2}} | policies,
            algorithm=algorithm,
            local_steps=5,
            seed=3,
        )
        while True:
            # no key yet, or one of a server that died before it wrote down that it gave it
            with suppress(FileNotFoundError, Unauthenticated, ServerUnreachable):
                operator = self.operator()
                for run in await operator.runs():
                    if run.spec.name == name:
                        return run.run_id
                return (await begin(operator, request)).run_id
            await self._a_moment()

    async def summary(self, run_id: str) -> RunSummary:
        """Where a run stands, as soon as a server is there to tell."""
        while True:
            with suppress(ServerUnreachable):
                return await self.operator().run(run_id)
            await self._a_moment()

    async def has_opened(self, run_id: str, round_: int) -> RunSummary:
        """Wait until a run has opened this round, or has ended."""
        while True:
            run = await self.summary(run_id)
            if run.round >= round_ or run.status.ended:
                return run
            await self._a_moment()

    async def ended(self, run_id: str) -> RunSummary:
        """Wait for the end of a run."""
        while not (run := await self.summary(run_id)).status.ended:
            await self._a_moment(ASK_S)
        assert run.status is RunStatus.FINISHED, run.reason
        return run

    async def final_tensors(self, run_id: str) -> dict[str, str]:
        """Wait for the end of a run; give {bundle: digest} of its last version."""
        run = await self.ended(run_id)
        assert (run.round, run.version) == (ROUNDS, ROUNDS), "a round was lost or repeated"
        return dict(run.tensors)


@asynccontextmanager
async def a_federation(folder: Path, **mortal: bool) -> AsyncIterator[Federation]:
    """A federation whose server lives; whatever happens, none of its processes is left."""
    federation = Federation(folder, **mortal)
    try:
        async with federation.at_the_end:
            federation.server.start()
            yield federation
    except BaseException as error:
        error.add_note("\n".join(federation.obituary()))
        raise
    finally:
        for mortal_ in federation.everybody:
            mortal_.abandon()
