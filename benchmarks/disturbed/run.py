# SPDX-License-Identifier: Apache-2.0
"""One run of a whole federation under given disturbances: a server process, its workers, what they saw."""

import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.disturbed.disturbances import Disturbances
from benchmarks.disturbed.liar import lie
from benchmarks.disturbed.mortal import Mortal, Paced, Surroundings, Watch
from benchmarks.disturbed.record import Audit, Record, audit
from fed_sophia.federation import federation, side_by_side, swarm_of, until_running, while_alive
from fed_sophia.follow import follow
from fed_sophia.new_run import RunRequest, begin
from fed_sophia.operator_client import OperatorClient
from fed_sophia.options import read_secret
from fed_sophia.output import Output
from fed_sophia.rounds_view import view_for
from protocol.messages import RoundSummary, RunSummary
from worker.agent import Trains, serve

_METRICS_WAIT_S = 30.0


@dataclass(frozen=True)
class Crew:
    """The workers of a federation: what they train, and how long each takes for it."""

    task_name: str
    trainers: Sequence[Trains]
    """One a worker, in the order of their numbers, and the evaluator's as the last."""
    pace_s: float
    """Least time for the local steps of a round; a slow worker takes a multiple of it."""

    @property
    def num_workers(self) -> int:
        return len(self.trainers) - 1


@dataclass(frozen=True)
class Outcome:
    """A run that has ended, and all that is known of it."""

    run: RunSummary
    rounds: Sequence[RoundSummary]
    record: Record
    audit: Audit


async def federation_run(
    title: str, request: RunRequest, crew: Crew, disturbances: Disturbances, folder: Path, output: Output
) -> Outcome:
    """Start a server and all the workers, follow the run to its end, audit its receipts, end everything.

    Raises:
        FedSophiaError: the server or a worker has failed.
    """
    record = Record()
    async with federation(folder, output) as (local, children):
        _, client = await local.start_server()
        async with client:
            run_id = (await begin(client, request)).run_id
            watch = Watch(view_for(output, run_id, title))
            with ThreadPoolExecutor(crew.num_workers + 1, thread_name_prefix="train") as executor:
                around = Surroundings(crew.task_name, disturbances, watch, record, executor)
                lives = await _lives(client, crew, around, request.task, folder / "workers")
                async with side_by_side(lives):
                    await while_alive(children, until_running(client, run_id))
                    following = follow(client, run_id, watch, lambda _: _METRICS_WAIT_S)
                    with watch:
                        run, rounds = await while_alive(children, following)
            key = read_secret(folder / "server" / "operator.key", "operator key")
            return Outcome(run, rounds, record, await audit(client.server_url, key, record, rounds))


async def _lives(
    client: OperatorClient, crew: Crew, around: Surroundings, task: str, folder: Path
) -> list[Coroutine[Any, Any, None]]:
    """What every worker, and the evaluator, is to do until the run is over."""
    swarm = await swarm_of(client, task, crew.num_workers, folder)
    processor = threading.Lock()
    lives: list[Coroutine[Any, Any, None]] = []
    for number in swarm.indices:
        if number in around.disturbances.liars:
            lives.append(lie(swarm.member(number), around))
            continue
        pace_s = crew.pace_s * around.disturbances.slow.get(number, 1.0)
        paced = Paced(crew.trainers[number], pace_s, processor, around.record)
        lives.append(Mortal(swarm.member(number), paced, pace_s, around).live())
    measuring = Paced(crew.trainers[-1], 0.0, processor, around.record)
    evaluator_life = serve(
        swarm.evaluator(), crew.task_name, measuring, lambda _event: None, executor=around.executor
    )
    return [*lives, evaluator_life]
