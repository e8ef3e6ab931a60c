# SPDX-License-Identifier: Apache-2.0
"""A crowd that waits at several servers, and then has next to nothing to send: what each of it costs."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.cluster.observer import Observer, Spent
from benchmarks.cluster.replicas import Replicas, reached_through, replicas
from benchmarks.cluster.stores import StoreProcesses
from benchmarks.crowd.children import CrowdProcesses, crowd_processes
from benchmarks.crowd.figures import usage_of
from benchmarks.crowd.runs import tiny_run
from fed_sophia.federation import while_alive
from fed_sophia.operator_client import OperatorClient
from fed_sophia.output import Output
from protocol.errors import Internal
from protocol.messages import JoinTokenRequest, RunSummary
from tests.system.cluster.balancer import Balancer

WITHIN_S = 300.0
LOOK_S = 0.2
WAITING, UPDATES = "fed_sophia_waiting_requests", "fed_sophia_updates_total"


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    replicas: Sequence[int]
    workers: int
    processes: int
    """That hold them."""
    alone_s: float
    """For how long servers are looked at to which nobody comes yet."""
    rest_s: float
    max_wait_s: int
    """A crowd that waits 20 s comes back as often as one thirty times as large that waits 600 s. All begin
    to wait at once: what is shorter than a wait sees nobody come back."""
    lost_after_s: int
    cohort: int
    """Workers invited to a round of tiny updates."""
    rounds: int
    """Of these, after one that is not measured."""


@dataclass(frozen=True)
class Signed:
    """What it took, with the first number of servers, until all had enrolled or had an access token."""

    replicas: int
    workers: int
    spent: Spent


@dataclass(frozen=True)
class Rested:
    """What waiting took."""

    replicas: int
    waiting_each: tuple[int, ...]
    alone: Spent
    """While nobody came."""
    grown_bytes_each: tuple[int, ...]
    """Resident memory of each server, since nobody came."""
    returns: int
    """Requests that ended in vain, and were made again."""
    failures: int
    connections_each: float
    """To the database, a server."""
    spent: Spent


@dataclass(frozen=True)
class Admitted:
    """What tiny updates took."""

    replicas: int
    updates: int
    """Of whatever was spent."""
    updates_per_s: float
    """While rounds were open."""
    spent: Spent


@dataclass
class Found:
    """What is known so far."""

    enrolled: list[Signed] = field(default_factory=list)
    renewed: list[Signed] = field(default_factory=list)
    rested: list[Rested] = field(default_factory=list)
    admitted: list[Admitted] = field(default_factory=list)


async def measure(plan: Plan, stores: StoreProcesses, folder: Path, output: Output) -> Found:
    """One crowd, and one number of servers after another.

    Raises:
        FedSophiaError: a server or the crowd has failed.
    """
    waits = {"FED_SOPHIA_MAX_WAIT_S": plan.max_wait_s, "FED_SOPHIA_LOST_AFTER_S": plan.lost_after_s}
    shared = stores.new("idle", **{name: str(value) for name, value in waits.items()})
    found, balancer = Found(), Balancer(())
    async with balancer.listening(), AsyncExitStack() as stack:
        crowd = _Crowd(plan, stack, found)
        for count in plan.replicas:
            async with (
                replicas(count, folder, shared) as servers,
                Observer(shared.database, servers.pids, stores).watching() as observer,
            ):
                await while_alive(servers.children, crowd.at(servers, observer, balancer))
            rested, admitted = found.rested[-1], found.admitted[-1]
            text = f"{count} servers: {rested.returns} returns, {admitted.updates} tiny updates"
            output.event("crowd-measured", text, {"replicas": count})
    return found


class _Crowd:
    """Workers who stay as servers come and go."""

    def __init__(self, plan: Plan, stack: AsyncExitStack, found: Found) -> None:
        self._plan = plan
        self._stack = stack
        self._found = found
        self._processes: CrowdProcesses | None = None

    async def at(self, servers: Replicas, observer: Observer, balancer: Balancer) -> None:
        """Wait at these servers, and then send them something."""
        await servers.metric(WAITING)  # what the first request loads is no worker's
        before = await observer.reading()
        await asyncio.sleep(self._plan.alone_s)
        alone = (await observer.reading()).since(before)
        fresh = [usage_of(pid).rss_bytes for pid in servers.pids]
        async with reached_through(balancer, servers) as client:
            if self._processes is None:
                self._processes = await self._come(client, observer, servers)
            processes = self._processes
            await _until_all_wait(servers, self._plan.workers)
            self._found.rested.append(await self._rest(processes, servers, observer, alone, fresh))
            self._found.admitted.append(await self._send(processes, client, observer, servers))

    async def _come(self, client: OperatorClient, observer: Observer, servers: Replicas) -> CrowdProcesses:
        workers = self._plan.workers
        before = await observer.reading()
        token = (await client.create_token(JoinTokenRequest(uses=workers))).join_token
        crowd = crowd_processes(client.server_url, token, workers, self._plan.processes, training_s=0.0)
        processes = await self._stack.enter_async_context(crowd)
        await processes.heard("enrolled", WITHIN_S)
        enrolled = await observer.reading()
        await _until_all_wait(servers, workers)  # each by an access token that it asks for now
        waiting = await observer.reading()
        self._found.enrolled.append(Signed(len(servers.pids), workers, enrolled.since(before)))
        self._found.renewed.append(Signed(len(servers.pids), workers, waiting.since(enrolled)))
        return processes

    async def _rest(
        self,
        processes: CrowdProcesses,
        servers: Replicas,
        observer: Observer,
        alone: Spent,
        fresh: Sequence[int],
    ) -> Rested:
        waiting = await servers.metric(WAITING)
        totals, before = await processes.totals(), await observer.reading()
        await asyncio.sleep(self._plan.rest_s)
        after, later = await observer.reading(), await processes.totals()
        grown = (usage_of(pid).rss_bytes - rss for pid, rss in zip(servers.pids, fresh, strict=True))
        return Rested(
            replicas=len(servers.pids),
            waiting_each=tuple(map(int, waiting)),
            alone=alone,
            grown_bytes_each=tuple(grown),
            returns=later["polls"] - totals["polls"],
            failures=later["failures"] - totals["failures"],
            connections_each=after.connections / len(servers.pids),
            spent=after.since(before),
        )

    async def _send(
        self, processes: CrowdProcesses, client: OperatorClient, observer: Observer, servers: Replicas
    ) -> Admitted:
        """From the moment when the first round is seen to be over, in which all others still join."""
        await processes.tell("train", "training")
        run = await tiny_run(client, self._plan.cohort, 1 + self._plan.rounds)
        await _until_version(client, run, 1)
        sent, before = sum(await servers.metric(UPDATES)), await observer.reading()
        await _until_version(client, run, 1 + self._plan.rounds)
        spent = (await observer.reading()).since(before)
        rounds = (await client.rounds(run.run_id))[1:]
        open_s = sum((each.ended_ms or 0) - each.opened_ms for each in rounds) / 1000
        return Admitted(
            replicas=len(servers.pids),
            updates=round(sum(await servers.metric(UPDATES)) - sent),
            updates_per_s=sum(each.admitted for each in rounds) / open_s,
            spent=spent,
        )


async def _until_all_wait(servers: Replicas, workers: int) -> None:
    """All but a few, who are between two waits."""
    waiting: tuple[float, ...] = ()
    try:
        async with asyncio.timeout(WITHIN_S):
            while sum(waiting := await servers.metric(WAITING)) < 0.98 * workers - 1:
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        raise Internal(f"after {WITHIN_S:.0f} s {waiting} of {workers} workers wait") from None


async def _until_version(client: OperatorClient, run: RunSummary, version: int) -> None:
    try:
        async with asyncio.timeout(WITHIN_S):
            while (now := await client.run(run.run_id)).version < version:
                if now.status.ended:
                    raise Internal(f"the run ended with version {now.version}: {now.reason}")
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        raise Internal(f"version {version} was not made within {WITHIN_S:.0f} s") from None
