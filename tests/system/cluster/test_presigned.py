# SPDX-License-Identifier: Apache-2.0
"""Real workers that exchange tensors with the store itself: next to nothing passes the servers."""

import asyncio
from pathlib import Path

import numpy as np

from benchmarks.exchange.rounds import Plan
from benchmarks.exchange.worker import TASK, NearlySameDelta, sent_by
from protocol.codec import encode_bundle
from protocol.messages import Admitted, Receipt, RunSpec
from tests.system.cluster.conftest import Cluster, StartsCluster
from worker.agent import serve
from worker.events import AgentEvent, Sent
from worker.options import WorkerOptions

PLAN = Plan(megabytes=8, workers=4, rounds=2)


async def held(cluster: Cluster, folder: Path, presigned: bool) -> tuple[str, list[Receipt], int]:
    """Hold the run: the digest of its last parameters, the receipts, and the bytes by the servers."""
    receipts: list[Receipt] = []

    def report(event: AgentEvent) -> None:
        if isinstance(event, Sent):
            receipts.append(event.receipt)

    params = {tensor.name: np.zeros(tensor.shape, np.float32) for tensor in PLAN.model}
    token = await cluster.join_token(PLAN.workers)
    async with cluster.operator(cluster.servers[0]) as operator:  # not by the balancer
        spec = RunSpec(
            name="presigned",
            task=TASK,
            algorithm="fedavg",
            model=PLAN.model,
            params_digest=await operator.put_tensors(encode_bundle("params", params)),
            rounds=PLAN.rounds,
            cohort_size=PLAN.workers,
            quorum=PLAN.workers,
            presigned=presigned,
        )
        before = cluster.balancer.carried_bytes
        run_id = (await operator.create_run(spec)).run_id
        async with asyncio.TaskGroup() as group:
            for number in range(PLAN.workers):
                options = WorkerOptions(
                    cluster.url,
                    token,
                    f"w-{number}",
                    folder / f"w-{number}",
                    TASK,
                    max_assignments=PLAN.rounds,
                )
                group.create_task(serve(options, TASK, NearlySameDelta(sent_by(number)), report))
        carried = cluster.balancer.carried_bytes - before
        ended = await cluster.run_ended(run_id)
    return ended.tensors["params"], receipts, carried


async def test_less_than_a_hundredth_of_the_bytes_passes_the_servers(
    start_cluster: StartsCluster, tmp_path: Path
) -> None:
    cluster = await start_cluster(2)
    moved = 2 * PLAN.model_bytes * PLAN.workers * PLAN.rounds
    digest, receipts, carried = await held(cluster, tmp_path / "past", presigned=True)
    assert len(receipts) == PLAN.workers * PLAN.rounds
    assert {receipt.admitted for receipt in receipts} == {Admitted.AT_AGGREGATION}
    assert carried < 0.01 * moved
    expected, receipts, carried = await held(cluster, tmp_path / "through", presigned=False)
    assert {receipt.admitted for receipt in receipts} == {Admitted.ON_ARRIVAL}
    assert carried > moved
    assert digest == expected
