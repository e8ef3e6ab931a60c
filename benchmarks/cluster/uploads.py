# SPDX-License-Identifier: Apache-2.0
"""Rounds without training at several servers, with bodies of some size: what each update costs."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cluster.observer import Observer, Spent
from benchmarks.cluster.replicas import Replicas, reached_through, replicas
from benchmarks.cluster.stores import StoreProcesses
from benchmarks.exchange.rounds import (
    JOINED_WITHIN_S,
    Plan,
    error_of,
    seconds_each,
    spec_of,
    until_ended,
    worker_processes,
)
from fed_sophia.federation import while_alive
from fed_sophia.operator_client import OperatorClient
from protocol.messages import JoinTokenRequest
from tests.system.cluster.balancer import Balancer

AGGREGATION_S = "fed_sophia_aggregation_seconds_sum"


@dataclass(frozen=True)
class Uploaded:
    """What rounds took, aggregation and all."""

    replicas: int
    plan: Plan
    round_seconds_each: Sequence[float]
    """From the opening of a round to that of the next."""
    aggregation_s: float
    """In all rounds; one server does a round's."""
    spent: Spent

    @property
    def updates(self) -> int:
        return self.plan.rounds * self.plan.workers

    @property
    def megabytes(self) -> float:
        """Of updates; as much went down to the workers."""
        return self.updates * self.plan.model_bytes / 1e6


async def measure(count: int, plan: Plan, stores: StoreProcesses, folder: Path) -> Uploaded:
    """So many servers, on stores of their own.

    Raises:
        Internal: a process has failed, or the aggregate is not what it must be.
    """
    shared = stores.new(f"uploads-{secrets.token_hex(4)}")
    balancer = Balancer(())
    async with (
        balancer.listening(),
        replicas(count, folder, shared) as servers,
        Observer(shared.database, servers.pids, stores).watching() as observer,
        reached_through(balancer, servers) as client,
    ):
        return await while_alive(servers.children, _measure(plan, servers, client, observer, folder))


async def _measure(
    plan: Plan, servers: Replicas, client: OperatorClient, observer: Observer, folder: Path
) -> Uploaded:
    token = (await client.create_token(JoinTokenRequest(uses=plan.workers))).join_token
    async with worker_processes(client.server_url, token, plan, folder) as workers:
        # in a run of its own, and of another model: everybody loads what is needed
        await until_ended(client, await spec_of(plan, client, 1, value=1.0), workers, JOINED_WITHIN_S)
        spec = await spec_of(plan, client, plan.rounds)
        aggregated_s, before = sum(await servers.metric(AGGREGATION_S)), await observer.reading()
        run = await until_ended(client, spec, workers)
        spent = (await observer.reading()).since(before)
    await error_of(plan, client, run)
    return Uploaded(
        replicas=len(servers.pids),
        plan=plan,
        round_seconds_each=seconds_each(await client.rounds(run.run_id)),
        aggregation_s=sum(await servers.metric(AGGREGATION_S)) - aggregated_s,
        spent=spent,
    )
