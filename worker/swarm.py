# SPDX-License-Identifier: Apache-2.0
"""Many workers in one process, over the real wire: a simulation that differs from a deployment only in
where the workers run.

Each has its own identity, state directory and connections; they share one loaded data set and the
threads that train.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial

from protocol.addresses import refuse_plain_http
from protocol.errors import FedSophiaError, InvalidUsage
from worker.agent import serve
from worker.events import Failed, Report
from worker.loading import Loading, loading
from worker.options import SwarmOptions, WorkerOptions
from worker.trainers import build_trainers, chosen_device, name_before_loading

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
    name = name_before_loading(members[0])
    build, device = partial(build_trainers, members[0], parts), partial(chosen_device, members[0])
    async with loading(build, name, device) as task:
        await _run(options, members, task, report)


async def _run(
    options: SwarmOptions, members: Sequence[WorkerOptions], task: Loading, report: Report
) -> None:
    executor = ThreadPoolExecutor(options.parallel_training, thread_name_prefix="train")
    try:
        async with asyncio.TaskGroup() as outer:
            if options.evaluator_token is not None:
                evaluator = _member(options.evaluator(), task, len(members), report, executor)
                evaluating = outer.create_task(evaluator)
            async with asyncio.TaskGroup() as training:
                for number, member in enumerate(members):
                    training.create_task(_member(member, task, number, report, executor))
            if options.evaluator_token is not None:
                evaluating.cancel()
    except BaseExceptionGroup as group:
        raise _first(group) from None
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


async def _member(
    options: WorkerOptions, task: Loading, number: int, report: Report, executor: Executor
) -> None:
    name, trainer = await task.name(), task.trainer(number)
    try:
        await serve(
            options, name, trainer, report, executor=executor, failure=task.failure, device=task.device
        )
    except FedSophiaError as error:
        report(Failed(error.code, error.detail, worker=options.name))
        raise


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error inside groups of groups."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
