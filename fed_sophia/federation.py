# SPDX-License-Identifier: Apache-2.0
"""A whole federation on this machine: a parameter server and swarms of workers, each a real process."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from fed_sophia.operator_client import OperatorClient
from fed_sophia.options import read_secret
from fed_sophia.output import Output
from fed_sophia.processes import Child, Children
from protocol.errors import Internal
from protocol.messages import JoinTokenRequest, Role, RunStatus, RunSummary
from worker.options import SwarmOptions

T = TypeVar("T")
_READY_S = 60.0
_JOIN_S = 180.0


@dataclass(frozen=True)
class Crowd:
    """The workers of a federation: how many, in how many processes, and what each holds."""

    task: str
    partition: str
    num_workers: int
    num_processes: int
    seed: int
    data_dir: Path | None = None

    def shares(self) -> list[tuple[int, int]]:
        """(first index, number) of the workers of each process; sizes differ by at most one."""
        cuts = [process * self.num_workers // self.num_processes for process in range(self.num_processes + 1)]
        return [(first, last - first) for first, last in pairwise(cuts) if last > first]


class Federation:
    """Running processes, and the operator's access to their server."""

    def __init__(self, folder: Path, children: Children, output: Output) -> None:
        self._folder = folder
        self._children = children
        self._output = output

    async def start_server(self, settings: Mapping[str, str] | None = None) -> tuple[Child, OperatorClient]:
        """Start the parameter server on a free port; give it once it listens.

        Args: settings: of the server, by the names of their variables.
        """
        data_dir = self._folder / "server"
        arguments = ["serve", "--host", "127.0.0.1", "--port", "0", "--data-dir", str(data_dir)]
        server = await self._children.start("server", arguments, settings)
        listening = await self._children.first_line(server, _READY_S)
        url = str(listening["url"])
        key = read_secret(Path(str(listening["operator_key_file"])), "operator key")
        fields = {"name": server.name, "pid": server.process.pid, "url": url}
        self._output.event("process", f"parameter server on {url}", fields)
        return server, OperatorClient(url, key)

    async def start_workers(self, client: OperatorClient, crowd: Crowd) -> None:
        """Start the swarms, and one evaluator in the first of them."""
        trainers = await client.create_token(JoinTokenRequest(uses=crowd.num_workers, label="demo"))
        evaluator = await client.create_token(JoinTokenRequest(role=Role.EVALUATOR, label="demo"))
        for number, (first, count) in enumerate(crowd.shares()):
            secrets = {"FED_SOPHIA_JOIN_TOKEN": trainers.join_token}
            if number == 0:
                secrets["FED_SOPHIA_EVALUATOR_TOKEN"] = evaluator.join_token
            swarm = await self._children.start(
                f"swarm-{number}",
                self._swarm_arguments(client.server_url, crowd, number, first, count),
                secrets,
            )
            text = f"workers {first} to {first + count - 1} in process {swarm.process.pid}"
            self._output.event("process", text, {"name": swarm.name, "pid": swarm.process.pid})

    def _swarm_arguments(self, url: str, crowd: Crowd, number: int, first: int, count: int) -> list[str]:
        values = {
            "--server": url,
            "--workers": count,
            "--first-index": first,
            "--of": crowd.num_workers,
            "--task": crowd.task,
            "--partition": crowd.partition,
            "--partition-seed": crowd.seed,
            "--state-dir": self._folder / f"swarm-{number}",
            "--threads": 1,
            "--device": "cpu",
        }
        if crowd.data_dir is not None:
            values["--data-dir"] = crowd.data_dir
        return ["swarm", *(str(part) for option in values.items() for part in option)]


@asynccontextmanager
async def federation(folder: Path, output: Output) -> AsyncIterator[tuple[Federation, Children]]:
    """Processes that are all gone when the block is left, however it is left."""
    children = Children(folder / "logs")
    try:
        yield Federation(folder, children, output), children
    finally:
        await children.stop()


async def swarm_of(client: OperatorClient, task: str, num_workers: int, folder: Path) -> SwarmOptions:
    """Workers, and an evaluator, that may join: for agents of this process."""
    trainers = await client.create_token(JoinTokenRequest(uses=num_workers))
    evaluator = await client.create_token(JoinTokenRequest(role=Role.EVALUATOR))
    return SwarmOptions(
        server_url=client.server_url,
        join_token=trainers.join_token,
        state_dir=folder,
        task=task,
        num_workers=num_workers,
        evaluator_token=evaluator.join_token,
    )


async def until_running(client: OperatorClient, run_id: str) -> RunSummary:
    """Wait until the first round is open.

    Raises:
        Internal: the workers did not come.
    """
    run = await client.run(run_id)
    for _ in range(round(_JOIN_S / 0.1)):
        if run.status is not RunStatus.WAITING:
            return run
        await asyncio.sleep(0.1)
        run = await client.run(run_id)
    raise Internal(
        f"after {_JOIN_S:.0f} s only {run.members} of {run.spec.workers_awaited} workers have come"
    )


async def while_alive(children: Children, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, given up as soon as a child ends.

    Raises:
        Internal: a child has ended.
    """
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(children.watch())
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            watching.result()
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


@asynccontextmanager
async def side_by_side(works: Sequence[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """These go on while the block does; the first error among them ends it.

    Raises:
        Exception: that error.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
            yield
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as errors:
        raise _first(errors) from None


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
