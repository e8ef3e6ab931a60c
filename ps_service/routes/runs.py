# SPDX-License-Identifier: Apache-2.0
"""Runs, their rounds and versions, and the metrics evaluators report."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field

from protocol.errors import Forbidden, InvalidMessage, NotFound, UnknownTensors
from protocol.messages import (
    MetricsReport,
    Role,
    RoundSummary,
    RunSpec,
    RunSummary,
    VersionSummary,
    WorkerInRound,
)
from protocol.operator_keys import Scope
from ps_service.admission import (
    check_combiners,
    check_model_size,
    check_num_examples,
    check_params_message,
)
from ps_service.aggregation import StoredMessage
from ps_service.openapi import BEARER
from ps_service.routes.pages import Limit
from ps_service.service import Service
from ps_service.standing import workers_in_round
from ps_service.storage import member_records, run_records, version_records
from ps_service.storage.credential_records import StoredWorker
from ps_service.storage.existing import the_round, the_run
from ps_service.storage.run_records import MOST_ROWS
from ps_service.summaries import round_summaries, run_summary

RoundNumber = Annotated[int, Field(ge=0, lt=2**63)]
VersionNumber = RoundNumber
Slot = Annotated[int, Query(ge=-1, lt=2**63)]


def router(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/v1/runs", tags=["runs"], dependencies=[BEARER])
    auth, records, runner = service.auth, service.stores.records, service.runner
    settings = service.settings
    # dependencies, so that a stranger learns nothing of what a body should have been
    readers, writers = Depends(auth.operator(Scope.RUNS_READ)), Depends(auth.operator(Scope.RUNS_WRITE))
    ThisWorker = Annotated[StoredWorker, Depends(auth.worker)]  # noqa: N806  # a type

    @routes.post("", status_code=201, dependencies=[writers])
    async def create(request: Request, spec: RunSpec) -> RunSummary:
        """Begin a run whose initial `params` were stored before."""
        check_combiners(spec)
        if spec.presigned and service.stores.blobs.addresses is None:
            raise InvalidMessage("presigned: this server keeps tensors in files, which only it can reach")
        check_model_size(spec.model, settings.max_model_tensors, settings.max_model_bytes)
        if await asyncio.to_thread(service.stores.blobs.size, spec.params_digest) is None:
            raise UnknownTensors(f"params_digest: nothing is stored under {spec.params_digest}")
        params = await asyncio.to_thread(StoredMessage, service.stores.blobs, spec.params_digest)
        check_params_message(params.layout.header, spec)
        run = await runner.create_run(spec)
        request.state.about = {"run_id": run.run_id}
        return run

    @routes.get("", dependencies=[readers])
    async def list_runs(after: str | None = None, limit: Limit = MOST_ROWS) -> dict[str, list[RunSummary]]:
        """Newest first, beginning behind the run `after`."""
        async with records.read() as connection:
            seen = None if after is None else await the_run(connection, after)
            runs = await run_records.list_runs(connection, seen, limit)
            return {"runs": [await run_summary(connection, run) for run in runs]}

    @routes.get("/{run_id}")
    async def show(request: Request, run_id: str) -> RunSummary:
        """Where a run stands; a worker may ask of the runs it has a part in."""
        caller = await auth.caller(request, Scope.RUNS_READ)
        async with records.read() as connection:
            run = await the_run(connection, run_id)
            if isinstance(caller, StoredWorker) and not await member_records.is_member(
                connection, run_id, caller.worker_id
            ):
                raise NotFound(f"there is no run {run_id}")
            return await run_summary(connection, run)

    @routes.post("/{run_id}/pause", dependencies=[writers])
    async def pause(run_id: str) -> RunSummary:
        """Open no further round; the open one goes on to its end."""
        return await runner.pause_run(run_id)

    @routes.post("/{run_id}/resume", dependencies=[writers])
    async def resume(run_id: str) -> RunSummary:
        """Open rounds again."""
        return await runner.resume_run(run_id)

    @routes.post("/{run_id}/cancel", dependencies=[writers])
    async def cancel(run_id: str) -> RunSummary:
        return await runner.cancel_run(run_id)

    @routes.get("/{run_id}/rounds", dependencies=[readers])
    async def rounds(
        run_id: str, after: RoundNumber = 0, limit: Limit = MOST_ROWS
    ) -> dict[str, list[RoundSummary]]:
        """Oldest first, beginning behind round `after`."""
        async with records.read() as connection:
            await the_run(connection, run_id)
            stored = await run_records.list_rounds(connection, run_id, after, limit)
            return {"rounds": await round_summaries(connection, run_id, stored)}

    @routes.get("/{run_id}/rounds/{round}/workers", dependencies=[readers])
    async def workers(
        run_id: str, round: RoundNumber, after: Slot = -1, limit: Limit = MOST_ROWS
    ) -> dict[str, list[WorkerInRound]]:
        """Where each worker of a round stands and why, by slot, beginning behind slot `after`."""
        async with records.read() as connection:
            await the_round(connection, run_id, round)
            return {"workers": await workers_in_round(connection, run_id, round, after, limit)}

    @routes.post("/{run_id}/rounds/{round}/aggregate", status_code=202, dependencies=[writers])
    async def close_now(run_id: str, round: RoundNumber) -> RoundSummary:  # its name in the path
        """Close a round now with what it holds."""
        return await runner.close_now(run_id, round)

    @routes.get("/{run_id}/versions", dependencies=[readers])
    async def versions(
        run_id: str, after: VersionNumber | None = None, limit: Limit = MOST_ROWS
    ) -> dict[str, list[VersionSummary]]:
        """Oldest first, beginning behind version `after`."""
        async with records.read() as connection:
            await the_run(connection, run_id)
            seen = -1 if after is None else after
            return {"versions": await version_records.list_versions(connection, run_id, seen, limit)}

    @routes.post("/{run_id}/metrics", status_code=204)
    async def report(worker: ThisWorker, run_id: str, metrics: MetricsReport) -> None:
        """An evaluator's measurement of a version."""
        if worker.role is not Role.EVALUATOR:
            raise Forbidden("only a worker with the role evaluator reports metrics")
        async with records.read() as connection:
            run = await the_run(connection, run_id)
        if not worker.may_serve(run_id, run.spec.task):
            raise NotFound(f"there is no run {run_id}")
        check_num_examples(metrics.num_examples, settings.max_num_examples)
        await runner.report_metrics(run_id, worker.worker_id, metrics)

    return routes
