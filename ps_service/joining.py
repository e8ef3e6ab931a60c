# SPDX-License-Identifier: Apache-2.0
"""Makes workers members of runs: a crowd in one transaction, which asks once whether a run can go on.

Who is a member and asks has nothing in hand: what it was given last is settled, maybe without its knowledge.
"""

from collections.abc import Collection, Mapping

from ps_service.arrivals import workers_changed
from ps_service.round_runner import RoundRunner
from ps_service.storage import credential_records, member_records
from ps_service.storage.existing import the_run


async def join(runner: RoundRunner, joining: Mapping[str, Collection[str]]) -> None:
    """Let workers join runs whose task they serve. Who was revoked and what has ended meanwhile is left out.

    Args: joining: {run_id: ids of the workers that are no members of it yet, or not known to be free}.
    """
    async with runner.transition() as transition:
        connection = transition.connection
        everybody = {worker_id for worker_ids in joining.values() for worker_id in worker_ids}
        workers = await credential_records.workers_by_id(connection, everybody)
        allowed = {worker_id for worker_id, worker in workers.items() if worker.in_good_standing}
        for run_id, worker_ids in joining.items():
            run = await the_run(connection, run_id)
            new = allowed.intersection(worker_ids)
            if new and not run.state.status.ended:
                await member_records.add_members(connection, run_id, new, transition.now_ms)
                await member_records.set_free(connection, run_id, new, transition.now_ms)
                await workers_changed(transition, run)
