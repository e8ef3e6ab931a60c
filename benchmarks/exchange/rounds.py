# SPDX-License-Identifier: Apache-2.0
"""Rounds of a real server process and real worker processes, watched from outside."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.crowd.figures import usage_of
from benchmarks.exchange.lags import lags_in
from benchmarks.exchange.watching import own_bytes, peak_of
from benchmarks.exchange.worker import TASK, sent_by
from benchmarks.peers.loopback import received_bytes
from fed_sophia.federation import federation, while_alive
from fed_sophia.operator_client import OperatorClient
from fed_sophia.output import Output
from protocol.codec import decode_message, encode_bundle
from protocol.errors import Internal
from protocol.messages import JoinTokenRequest, RoundSummary, RunSpec, RunSummary, TensorSpec

TENSORS = 20
LOCAL_STEPS = 10
JOINED_WITHIN_S = 300.0
ROUND_WITHIN_S = 120.0
LOOK_S = 0.25
GRACE_S = 10.0


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    megabytes: float
    """Of the model, 10^6 bytes of float32 in 20 tensors."""
    workers: int
    rounds: int
    algorithm: str = "fedavg"
    encodings: Mapping[str, str] | None = None
    presigned: bool = False

    @property
    def name(self) -> str:
        return f"{self.megabytes:g} MB × {self.workers}" + (" straight to the store" * self.presigned)

    @property
    def model(self) -> tuple[TensorSpec, ...]:
        elements = max(1, round(self.megabytes * 1e6 / 4 / TENSORS))
        return tuple(TensorSpec(name=f"layer-{n:02d}", shape=(elements,)) for n in range(TENSORS))

    @property
    def model_bytes(self) -> int:
        return sum(4 * tensor.num_elements for tensor in self.model)


@dataclass(frozen=True)
class Figures:
    """What the rounds took."""

    round_seconds_each: Sequence[float]
    """From the opening of a round to that of the next."""
    lo_bytes_per_round: float
    """Of whoever used the loopback device."""
    server_cpu_s_per_round: float
    """Like all of these without what comes before: one round in which everybody loads what is needed."""
    workers_cpu_s_per_round: float
    server_idle_bytes: int
    """Memory of the server's own before the run was made; mapped files are not counted."""
    server_peak_bytes: int
    start_seconds: float
    """From the start of the first worker to the opening of the first round."""
    loop_lags_seen: int
    """Looks at how late the server's event loop was."""
    loop_lag_over_20ms: int
    """Of these, by how many it was late. Processes that outnumber the cores make it late too."""
    aggregate_max_error: float


async def measure(plan: Plan, folder: Path, output: Output) -> Figures:
    """Start a server and workers, let them have their rounds, and check what came of them.

    Raises:
        Internal: a process has failed, or the aggregate is not what it must be.
    """
    async with federation(folder, output) as (local, children):
        server, client = await local.start_server()
        async with client:
            return await while_alive(children, _measure(plan, folder, server.process.pid, client))


async def _measure(plan: Plan, folder: Path, server: int, client: OperatorClient) -> Figures:
    await client.runs()  # what the first request loads is no round's
    idle_bytes = own_bytes(server)
    token = (await client.create_token(JoinTokenRequest(uses=plan.workers))).join_token
    began_s = time.time()
    async with peak_of(server) as peak, worker_processes(client.server_url, token, plan, folder) as workers:
        # in a run of its own: rounds of a small model are over before anybody has looked;
        # of another model: workers need not pull what they have
        first = await until_ended(client, await spec_of(plan, client, 1, value=1.0), workers, JOINED_WITHIN_S)
        spec = await spec_of(plan, client, plan.rounds)
        pids = [server, *(worker.pid for worker in workers)]
        lags_before, bytes_before = lags_in(await client.metrics()), received_bytes()
        before = [usage_of(pid).cpu_s for pid in pids]
        run = await until_ended(client, spec, workers)
        took = [usage_of(pid).cpu_s - earlier for pid, earlier in zip(pids, before, strict=True)]
        moved_bytes = received_bytes() - bytes_before
        lags = lags_in(await client.metrics()) - lags_before
    rounds = await client.rounds(run.run_id)
    return Figures(
        round_seconds_each=seconds_each(rounds),
        lo_bytes_per_round=moved_bytes / plan.rounds,
        server_cpu_s_per_round=took[0] / plan.rounds,
        workers_cpu_s_per_round=sum(took[1:]) / plan.rounds,
        server_idle_bytes=idle_bytes,
        server_peak_bytes=peak.own_bytes,
        start_seconds=(await client.rounds(first.run_id))[0].opened_ms / 1000 - began_s,
        loop_lags_seen=lags.seen,
        loop_lag_over_20ms=lags.over_20ms,
        aggregate_max_error=await error_of(plan, client, run),
    )


async def spec_of(plan: Plan, client: OperatorClient, rounds: int, value: float = 0.0) -> RunSpec:
    params = {tensor.name: np.full(tensor.shape, value, np.float32) for tensor in plan.model}
    return RunSpec(
        name="exchange",
        task=TASK,
        algorithm=plan.algorithm,
        encodings=dict(plan.encodings or {}),
        presigned=plan.presigned,
        model=plan.model,
        params_digest=await client.put_tensors(encode_bundle("params", params)),
        rounds=rounds,
        local_steps=LOCAL_STEPS,
        cohort_size=plan.workers,
        min_workers=plan.workers,
        quorum=plan.workers,
        deadline_s=600,
    )


async def until_ended(
    client: OperatorClient,
    spec: RunSpec,
    workers: Sequence[asyncio.subprocess.Process],
    join_within_s: float = 0.0,
) -> RunSummary:
    """Make a run, and wait for its end."""
    run = await client.create_run(spec)
    until_s = time.monotonic() + join_within_s + ROUND_WITHIN_S
    while time.monotonic() < until_s:
        now = await client.run(run.run_id)
        if now.status.ended:
            return now
        if now.version > run.version:
            run, until_s = now, time.monotonic() + ROUND_WITHIN_S
        if ended := [worker.returncode for worker in workers if worker.returncode is not None]:
            raise Internal(f"{len(ended)} workers have ended, with {ended}")
        await asyncio.sleep(LOOK_S)
    raise Internal(f"version {run.version + 1} was not made within {ROUND_WITHIN_S:.0f} s")


def seconds_each(rounds: Sequence[RoundSummary]) -> list[float]:
    """From the opening of each round to that of the next."""
    starts = [round_.opened_ms for round_ in rounds]
    ends = [*starts[1:], rounds[-1].ended_ms or 0]
    return [(end - start) / 1000 for start, end in zip(starts, ends, strict=True)]


async def error_of(plan: Plan, client: OperatorClient, run: RunSummary) -> float:
    """How far the final parameters are from what they must be, at the worst coordinate.

    Raises:
        Internal: too far, or not all versions were made.
    """
    if run.version != plan.rounds:
        raise Internal(f"the run ended with version {run.version} of {plan.rounds}: {run.reason}")
    last = (await client.versions(run.run_id))[-1]
    params = decode_message(await client.tensors(run.run_id, last.tensors["params"]))["params"]
    expected = plan.rounds * sum(map(sent_by, range(plan.workers))) / plan.workers
    error = max(float(np.abs(values - expected).max()) for values in params.values())
    if not error < 1e-4 * expected:
        raise Internal(f"the aggregate is off by {error}: expected {expected} at every coordinate")
    return error


@asynccontextmanager
async def worker_processes(
    url: str, join_token: str, plan: Plan, folder: Path
) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    """Workers, each a process, that are all gone when the block is left."""
    started: list[asyncio.subprocess.Process] = []
    try:
        for number in range(plan.workers):
            command = [sys.executable, "-m", "benchmarks.exchange.worker", url, str(number)]
            started.append(
                await asyncio.create_subprocess_exec(
                    *command,
                    str(folder / f"worker-{number}"),
                    stdin=asyncio.subprocess.PIPE,
                    env=os.environ | {"EXCHANGE_JOIN_TOKEN": join_token},
                    start_new_session=True,
                )
            )
        yield started
    finally:
        for process in started:
            if process.returncode is None:
                process.terminate()
        ends = [asyncio.ensure_future(process.wait()) for process in started]
        if ends:
            _, alive = await asyncio.wait(ends, timeout=GRACE_S)
            for process in started:
                if alive and process.returncode is None:
                    process.kill()
            await asyncio.wait(ends)
