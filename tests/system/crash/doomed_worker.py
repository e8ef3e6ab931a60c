# SPDX-License-Identifier: Apache-2.0
"""A worker that can die before and after each request and each fsync, and notes every receipt it was given.

A turn of a worker is a line of steps: a file is renamed between its fsync and that of its directory, so the
points after the one and before the other lie before and after the rename. A step that comes several times
in one turn is a different step each time. So is one of a fresh process, which may be sending what the one
before it trained; one of a later round, which replaces what is kept; and one of the last round, after which
nothing puts anything right. In the first round, where nothing is kept yet, a worker lives.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from fed_sophia.interruptible import run_until_stopped
from tests.system.crash.steps import Steps, path_of, shown, without_ids
from worker.agent import serve
from worker.events import AgentEvent, Training
from worker.options import WorkerOptions
from worker.patience import Pauses
from worker.trainers import build_trainers

_SHORT = Pauses(sleep=lambda wait_s: asyncio.sleep(wait_s / 20))
"""A server that is away is asked again soon: it is only dead."""


@dataclass(frozen=True)
class WorkerOrders:
    """Which worker to be, where to write down what happens to it, and whether to die."""

    options: WorkerOptions
    join_token_file: Path
    last_round: int
    diary: Path
    """One line an event: its kind."""
    receipts: Path
    """One line a receipt, as the server wrote it."""
    deaths: Path | None


def be_a_worker(orders: WorkerOrders) -> None:
    """Take turns until SIGTERM, or until the first point at which nobody has died."""
    options = replace(orders.options, join_token=orders.join_token_file.read_text().strip())
    task_name, trainers = build_trainers(options, [options.partition_index])
    turn = Turn(Steps(orders.deaths), orders.last_round)
    sync = MortalSync(options.state_dir, turn)
    transport = MortalTransport(turn, orders.receipts)

    def report(event: AgentEvent) -> None:
        append(orders.diary, type(event).__name__)
        if isinstance(event, Training):
            turn.training_for(event.round)

    run_until_stopped(serve(options, task_name, trainers[0], report, _SHORT, transport=transport, fsync=sync))


def append(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(f"{line}\n")


class Turn:
    """The steps since an assignment was asked for, numbered where one comes again."""

    def __init__(self, steps: Steps, last_round: int) -> None:
        self._steps = steps
        self._last_round = last_round
        self._when: str | None = "at the start"
        self._taken: Counter[str] = Counter()

    def training_for(self, round_: int) -> None:
        """The steps from now on belong to this round."""
        later = "in the last round" if round_ == self._last_round else "in a round"
        self._when = None if round_ == 1 else later

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        if name.endswith("/assignment"):
            self._taken.clear()
        self._taken[name] += 1
        number = self._taken[name]
        if self._when is None:
            yield
            return
        with self._steps.step(f"{name}{f' (no. {number})' if number > 1 else ''} {self._when}"):
            yield


class MortalSync:
    """An fsync that is a step, named by the path."""

    def __init__(self, root: Path, turn: Turn) -> None:
        self._root = root
        self._turn = turn

    def __call__(self, descriptor: int) -> None:
        with self._turn.step(f"fsync of {shown(path_of(descriptor), self._root)}"):
            os.fsync(descriptor)


class MortalTransport(httpx.AsyncBaseTransport):
    """The network, each request a step; a receipt is noted as soon as it is here."""

    def __init__(self, turn: Turn, receipts: Path) -> None:
        self._network = httpx.AsyncHTTPTransport(verify=False)  # loopback: there is nothing to verify
        self._turn = turn
        self._receipts = receipts

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        with self._turn.step(f"{request.method} {without_ids(path)}"):
            answer = await self._network.handle_async_request(request)
            may_be_receipt = path.endswith("/update") or path.startswith("/v1/uploads/")
            if may_be_receipt and answer.status_code == httpx.codes.OK:
                body = await answer.aread()
                await answer.aclose()
                append(self._receipts, body.decode())
                answer = httpx.Response(
                    answer.status_code, headers=answer.headers, stream=httpx.ByteStream(body)
                )
        return answer

    async def aclose(self) -> None:
        await self._network.aclose()
