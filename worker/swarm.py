# SPDX-License-Identifier: Apache-2.0
"""Many workers in one process, over the real wire: a simulation that differs from a deployment only in
where the workers run.

Each has its own identity, state directory and connections; they share one loaded data set and the
threads that train.
"""

import asyncio
from concurrent.futures import Executor, ThreadPoolExecutor

from protocol.addresses import refuse_plain_http
from protocol.errors import FedSophiaError, InvalidUsage
from worker.agent import Trains, serve
from worker.events import Failed, Report
from worker.options import SwarmOptions, WorkerOptions
from worker.trainers import build_trainers

__all__ = ["SwarmOptions", "run_swarm"]


async def run_swarm(options: SwarmOptions, report: Report) -> None:
    """Run the workers until cancelled, or until each has done its `max_assignments`.

    Raises:
        FedSophiaError: what one worker could not mend; it ends them all.
    """
    if options.num_workers < 1 or options.parallel_training < 1:
        raise InvalidUsage("a swarm needs at least one worker, and one that may train at a time")
    refuse_plain_http(options.server_url, options.trust.insecure)
    members = [options.member(index) for index in options.indices]
    parts: list[int | None] = [*options.indices]
    if options.evaluator_token is not None:
        parts.append(None)
    task_name, trainers = await asyncio.to_thread(build_trainers, members[0], parts)
    executor = ThreadPoolExecutor(options.parallel_training, thread_name_prefix="train")
    try:
        async with asyncio.TaskGroup() as outer:
            if options.evaluator_token is not None:
                evaluating = outer.create_task(
                    _member(options.evaluator(), task_name, trainers.pop(), report, executor)
                )
            async with asyncio.TaskGroup() as training:
                for member, trainer in zip(members, trainers, strict=True):
                    training.create_task(_member(member, task_name, trainer, report, executor))
            if options.evaluator_token is not None:
                evaluating.cancel()
    except BaseExceptionGroup as group:
        raise _first(group) from None
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


async def _member(
    options: WorkerOptions, task_name: str, trainer: Trains, report: Report, executor: Executor
) -> None:
    try:
        await serve(options, task_name, trainer, report, executor=executor)
    except FedSophiaError as error:
        report(Failed(error.code, error.detail, worker=options.name))
        raise


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error inside groups of groups."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
