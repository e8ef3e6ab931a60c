# SPDX-License-Identifier: Apache-2.0
"""Many workers in one process, over the real wire: a simulation that differs from a deployment only in
where the workers run.

Each has its own identity, state directory and connections. They share one loaded data set, and the threads
that train, or a trainer that does many workers' training at once.
"""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from protocol.addresses import refuse_plain_http
from protocol.codec import Bundle
from protocol.errors import FedSophiaError, InvalidUsage
from protocol.messages import Assignment
from worker.agent import serve_aside
from worker.aside import InThread, TrainsAside
from worker.crew import Apart, Together, build_crew
from worker.events import Failed, NotStacked, Report, StackShrunk
from worker.gathering import Gathering
from worker.loading import Loading, loading
from worker.local_state import Kept
from worker.open_files import allow_members
from worker.options import SwarmOptions, WorkerOptions
from worker.patience import REAL_PAUSES
from worker.shared import Shared
from worker.trainers import chosen_device, name_before_loading
from worker.update import Trained

__all__ = ["SwarmOptions", "run_swarm"]

PAUSES = replace(REAL_PAUSES, heartbeat_s=3600.0)
"""Heartbeats as often as the server asks for them, and not more: thousands may wait to be trained."""
DISK_THREADS = 32
"""So many members' files are written at a time: a disk syncs many together as soon as one."""


async def run_swarm(options: SwarmOptions, report: Report) -> None:
    """Run the workers until cancelled, or until each has done its `max_assignments`.

    Raises:
        FedSophiaError: what one worker could not mend; it ends them all.
    """
    if options.num_workers < 1 or options.parallel_training < 1:
        raise InvalidUsage("a swarm needs at least one worker, and one that may train at a time")
    if options.stack is not None and options.stack < 1:
        raise InvalidUsage("a stack needs at least one worker")
    refuse_plain_http(options.server_url, options.trust.insecure)
    allow_members(options.num_workers)
    first = options.member(options.first_index)
    name = name_before_loading(first)
    async with loading(partial(build_crew, options), name, partial(chosen_device, first)) as task:
        await _run(options, task, report)


async def _run(options: SwarmOptions, task: Loading[Apart | Together], report: Report) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(DISK_THREADS, "disk"))
    executor = ThreadPoolExecutor(options.parallel_training, thread_name_prefix="train")
    crew = _Crew(options, task, executor, report)
    try:
        async with asyncio.TaskGroup() as outer:
            if options.evaluator_token is not None:
                evaluating = outer.create_task(crew.live(options.evaluator(), options.num_workers))
            async with asyncio.TaskGroup() as training:
                for number, index in enumerate(options.indices):
                    training.create_task(crew.live(options.member(index), number))
            if options.evaluator_token is not None:
                evaluating.cancel()
    except BaseExceptionGroup as group:
        raise _first(group) from None
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


class _Crew:
    """The members, and what they share."""

    def __init__(
        self, options: SwarmOptions, task: Loading[Apart | Together], executor: Executor, report: Report
    ) -> None:
        self._options = options
        self._task = task
        self._executor = executor
        self._report = report
        self._shared = Shared()
        self._trainers: Sequence[TrainsAside] = ()

    async def live(self, options: WorkerOptions, number: int) -> None:
        """Be one member; after the others comes the evaluator."""
        name = await self._task.name()
        try:
            await serve_aside(
                options,
                name,
                _OnceLoaded(self, number),
                self._report,
                PAUSES,
                failure=self._task.failure,
                device=self._task.device,
                shared=self._shared,
            )
        except FedSophiaError as error:
            self._report(Failed(error.code, error.detail, worker=options.name))
            raise

    async def trainer(self, number: int) -> TrainsAside:
        """Give a member's trainer, once it has been made.

        Raises:
            NotLoaded: the task cannot be loaded.
        """
        made = await self._task.made()
        if not self._trainers:
            self._trainers = self._apart(made) if isinstance(made, Apart) else self._together(made)
        return self._trainers[number]

    def _apart(self, made: Apart) -> Sequence[TrainsAside]:
        if made.why is not None:
            self._report(NotStacked(made.why, worker=self._options.name_prefix))
        return [InThread(trainer, self._executor) for trainer in made.trainers]

    def _together(self, made: Together) -> Sequence[TrainsAside]:
        members, evaluator = self._options.num_workers, InThread(made.evaluator, self._executor)
        gathering = Gathering(made.trainer, evaluator, self._executor, members, self._shrunk)
        return [*(gathering.member(number) for number in range(members)), evaluator]

    def _shrunk(self, at_once: int) -> None:
        self._report(StackShrunk(at_once, worker=self._options.name_prefix))


class _OnceLoaded:
    """A member's trainer, which first waits until the task has been loaded."""

    def __init__(self, crew: _Crew, number: int) -> None:
        self._crew = crew
        self._number = number

    async def train(self, assignment: Assignment, state: Mapping[str, Bundle], kept: Kept | None) -> Trained:
        trainer = await self._crew.trainer(self._number)
        return await trainer.train(assignment, state, kept)

    async def evaluate(self, state: Mapping[str, Bundle]) -> tuple[int, Mapping[str, float]]:
        trainer = await self._crew.trainer(self._number)
        return await trainer.evaluate(state)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error inside groups of groups."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
