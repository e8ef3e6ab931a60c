# SPDX-License-Identifier: Apache-2.0
"""The engine over the real wire: a server process, and a whole agent for every worker.

The agents share this process; they enrol, wait, pull, train, push and keep their state on disk as anywhere.
Each round waits until the version before it is evaluated, so that every version is.
"""

import asyncio
import tempfile
from collections.abc import Coroutine, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fed_sophia.experiments.data import OnThisMachine
from fed_sophia.experiments.engine import Engine, Evaluated, Outcome, Report
from fed_sophia.experiments.trials import Trial
from fed_sophia.federation import federation, side_by_side, swarm_of, until_running, while_alive
from fed_sophia.follow import follow
from fed_sophia.interruptible import run_interruptibly
from fed_sophia.new_run import begin
from fed_sophia.operator_client import OperatorClient
from protocol.codec import NAN_OR_INFINITY
from protocol.errors import Internal, InvalidUsage, NotFinite
from protocol.messages import (
    RoundStatus,
    RoundSummary,
    RunStatus,
    RunSummary,
    TargetMetric,
)
from worker.agent import Trains, serve
from worker.events import AgentEvent, Refused
from worker.machine import intra_op_threads, whole_float32
from worker.options import WorkerOptions
from worker.trial_data import TrialData, TrialEvaluator

_EVALUATION_S = 600.0
_NEVER = TargetMetric(name="test_loss", at_most=-1e30, wait_s=_EVALUATION_S)
"""A target only for the sake of the waiting."""


class OverWire(OnThisMachine):
    """Trains by a federation on this machine; each trial has a new one."""

    name = "wire"

    def run(self, trial: Trial, report: Report) -> Outcome:
        """Train; the server, the workers and their files are gone afterwards, however this ends.

        Raises:
            Interrupted: a signal came.
            InvalidUsage: it has dishonest workers.
            FedSophiaError: it cannot be trained here at all, or the server or a worker has failed.
        """
        if trial.attack is not None:
            raise InvalidUsage(f"{trial.scenario}, {trial.label}: an attack is only forged --in-process")
        data = self._data(trial)
        threads = self._threads if data.trains_side_by_side(self._device) else 1
        with (
            tempfile.TemporaryDirectory(prefix="fed-sophia-trial-", ignore_cleanup_errors=True) as folder,
            ThreadPoolExecutor(threads, thread_name_prefix="train") as executor,
            intra_op_threads(1),
            whole_float32(),
        ):
            return run_interruptibly(self._held(trial, data, Path(folder), executor, report))

    async def _held(
        self, trial: Trial, data: TrialData, folder: Path, executor: Executor, report: Report
    ) -> Outcome:
        request = self._data.request(trial)
        request.policies["target_metric"] = _NEVER.model_dump()
        refused: list[Refused] = []
        async with federation(folder, _Silent()) as (local, children):
            _, client = await local.start_server()
            async with client:
                run_id = (await begin(client, request)).run_id
                lives = await self._lives(trial, data, client, folder / "workers", executor, refused)
                async with side_by_side(lives):
                    await while_alive(children, until_running(client, run_id))
                    following = follow(client, run_id, _Reporting(trial, report), lambda _: _EVALUATION_S)
                    run, rounds = await while_alive(children, following)
        return _outcome(trial, run, rounds, refused, data.digest)

    async def _lives(
        self,
        trial: Trial,
        data: TrialData,
        client: OperatorClient,
        folder: Path,
        executor: Executor,
        refused: list[Refused],
    ) -> list[Coroutine[Any, Any, None]]:
        """What every worker, and the evaluator, is to do until the run is over."""
        swarm = await swarm_of(client, trial.task, trial.workers, folder)
        training = await asyncio.to_thread(data.trainers, self._device)
        measuring = TrialEvaluator(data, self._device, iterate_average=trial.iterate_average)
        everyone: list[tuple[WorkerOptions, Trains]] = [
            *((swarm.member(index), trainer) for index, trainer in zip(swarm.indices, training, strict=True)),
            (swarm.evaluator(), measuring),
        ]

        def hear(event: AgentEvent) -> None:
            if isinstance(event, Refused):
                refused.append(event)

        return [
            serve(options, data.task.name, trainer, hear, executor=executor) for options, trainer in everyone
        ]


class _Reporting:
    """A view that hands on every evaluation, each once and in order."""

    def __init__(self, trial: Trial, report: Report) -> None:
        self._trial = trial
        self._report = report
        self._reported = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, rounds: Sequence[RoundSummary], finished: bool = False) -> None:
        seconds, up, down = 0.0, 0, 0
        for round_ in rounds:
            if round_.ended_ms is None:
                return
            seconds += (round_.ended_ms - round_.opened_ms) / 1000
            up, down = up + round_.bytes_up, down + round_.bytes_down
            version = round_.version
            if version is None or version <= self._reported:
                continue
            if "test_accuracy" not in round_.metrics:
                return
            self._reported = version
            if self._trial.is_evaluated(version):
                self._report(Evaluated(version, seconds, up, down, round_.metrics))


class _Silent:
    """Nobody listens to a trial's processes; what they say is in their logs."""

    def event(self, event: str, text: str, fields: dict[str, object]) -> None: ...

    def rows(self, event: str, table: object, rows: object) -> None: ...

    def summary(self, text: str, fields: dict[str, object]) -> None: ...

    def error(self, error: Exception) -> None: ...


def _outcome(
    trial: Trial, run: RunSummary, rounds: Sequence[RoundSummary], refused: Sequence[Refused], data: str
) -> Outcome:
    """How the run ended, joules unknown: the device measured and served meanwhile.

    Raises:
        Internal: it could not be brought to its end for another reason than that a number was not finite.
    """
    committed = [round_ for round_ in rounds if round_.status is RoundStatus.COMMITTED]
    seconds = sum(((each.ended_ms or each.opened_ms) - each.opened_ms) / 1000 for each in rounds)
    examples = sum(each.admitted for each in committed) * trial.local_steps * trial.batch_size
    trouble = None
    unmeasured = [each for each in committed if "test_accuracy" not in each.metrics]
    if run.status is not RunStatus.FINISHED:
        trouble = f"round {run.round}: the run {run.status.value}: {run.reason}"
    elif unmeasured:
        trouble = f"round {unmeasured[0].round}: the version could not be evaluated"
    not_finite = [each.detail for each in refused if each.code == NotFinite.code]
    if trouble and not not_finite and NAN_OR_INFINITY not in trouble:
        raise Internal(f"{trial.scenario}, {trial.label}, seed {trial.seed}: {trouble}")
    failure = f"{trouble} ({not_finite[0]})" if trouble and not_finite else trouble
    return Outcome(seconds, examples, None, data, failure)


def make_engine(device: str, threads: int | None, data_dir: Path | None) -> Engine:
    """The engine on a device as `choose_device` names it; None lets as many workers train at a time as
    there are cores.

    Raises:
        DeviceUnavailable: this machine has no such device.
    """
    return OverWire(device, threads, data_dir)
