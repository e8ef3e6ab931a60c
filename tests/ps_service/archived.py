# SPDX-License-Identifier: Apache-2.0
"""Runs with a history behind them, taken from one server to another by the command line's own client."""

import json

import httpx

from fed_sophia.archive import archive_of, export_run, import_run
from fed_sophia.operator_client import OperatorClient
from ps_service.storage import run_records
from tests.ps_service.conftest import OPERATOR_KEY


def operator_of(server):
    """The command line's client, whose requests stay inside this process."""
    return OperatorClient("http://server", OPERATOR_KEY, transport=httpx.ASGITransport(server.app))


async def export(server, run_id, path, wanted="last"):
    async with operator_of(server) as client:
        return await export_run(client, run_id, wanted, path, lambda progress: None)


async def take(server, path):
    """Import an archive; give the new run as the server shows it."""
    async with operator_of(server) as client:
        imported = await import_run(client, path, None, lambda progress: None)
    assert await server.show(imported.run.run_id) == imported.run
    return imported.run


async def document_of(server, run_id, wanted="last"):
    """What `run.json` of its archive would say, as fields that can be changed."""
    async with operator_of(server) as client:
        return json.loads((await archive_of(client, run_id, wanted)).model_dump_json())


async def versions_of(server, run_id):
    return (await server.operator.get(f"/v1/runs/{run_id}/versions")).json()["versions"]


async def state_of(server, run_id):
    async with server.stores.records.read() as connection:
        return (await run_records.load_run(connection, run_id)).state


async def hold_a_round(server, cohort, value=0.005):
    """Every worker answers the open round; its workers say how it went."""
    for worker in cohort:
        assignment = await worker.assignment()
        update = server.an_update(assignment, value, metrics={"train_loss": 2.5, "train_accuracy": 0.1})
        await worker.send(assignment, update)
        server.clock.advance(7)
    await server.aggregate_now()


async def a_history(server, rounds_held=3, **spec):
    """A run of two workers with so many rounds behind it, the first of them abandoned."""
    run_id, cohort = await server.a_round(2, **{"quorum": 2, "rounds": 10} | spec)
    workers = [worker for worker, _ in cohort]
    worker, assignment = cohort[0]
    await worker.http.post(f"/v1/assignments/{assignment['assignment_id']}/decline", json={"reason": "busy"})
    for _ in range(rounds_held):
        await hold_a_round(server, workers)
    return run_id, workers


async def measure(server, evaluator, run_id, accuracy):
    """An evaluator reports on the newest version."""
    report = {"version": (await server.show(run_id)).version, "num_examples": 5}
    metrics = {"metrics": {"test_accuracy": accuracy}}
    answer = await evaluator.http.post(f"/v1/runs/{run_id}/metrics", json=report | metrics)
    assert answer.status_code == 204, answer.text
