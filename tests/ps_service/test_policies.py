# SPDX-License-Identifier: Apache-2.0
"""The policies of a run over HTTP: who is invited, how long a round lasts, when a run ends or rests."""

import pytest

from ps_service.deadlines import RETRY_S, tick
from ps_service.storage import schema


async def send_all(server, cohort):
    for worker, assignment in cohort:
        await worker.send(assignment)
    await server.aggregate_now()


async def an_evaluation(server, run_id, version, **metrics):
    judge = await server.enrol(f"judge-{version}", role="evaluator")
    report = {"version": version, "num_examples": 10, "metrics": metrics}
    assert (await judge.http.post(f"/v1/runs/{run_id}/metrics", json=report)).status_code == 204


async def test_a_paused_run_rests_after_its_round_until_it_is_resumed(server):
    run_id, cohort = await server.a_round()
    assert (await server.operator.post(f"/v1/runs/{run_id}/pause")).json()["status"] == "paused"
    await send_all(server, cohort)
    run = await server.show(run_id)
    assert (run.status, run.version, run.round) == ("paused", 1, 1)
    assert (await cohort[0][0].ask()).status_code == 204

    answer = await server.operator.post(f"/v1/runs/{run_id}/resume")
    assert (answer.json()["status"], answer.json()["round"]) == ("running", 2)
    assert (await cohort[0][0].assignment())["round"] == 2


@pytest.mark.parametrize("verb", ["pause", "resume"])
async def test_an_ended_run_is_neither_paused_nor_resumed(server, verb):
    run = await server.a_run()
    await server.operator.post(f"/v1/runs/{run.run_id}/cancel")
    answer = await server.operator.post(f"/v1/runs/{run.run_id}/{verb}")
    assert (answer.status_code, answer.json()["code"]) == (409, "run-ended")


async def test_the_first_to_answer_are_kept_and_the_others_are_told_so(server):
    run_id, cohort = await server.a_round(3, cohort_size=2, min_workers=3, over_selection=1.5)
    assert len(cohort) == 3
    await send_all(server, cohort[:2])
    worker, assignment = cohort[2]
    answer = await worker.declare(assignment, server.an_update(assignment).header)
    assert answer.json()["code"] == "round-closed"
    first = (await server.rounds(run_id))[0]
    assert (first["status"], first["invited"], first["admitted"]) == ("committed", 3, 2)


async def test_a_round_without_a_quorum_gets_its_time_again(server):
    run_id, cohort = await server.a_round(quorum=2, deadline_s=60, max_extensions=1)
    deadline_ms = (await server.rounds(run_id))[0]["deadline_ms"]
    server.clock.advance(60_000)
    assert await tick(server.runner) <= 60
    extended = (await server.rounds(run_id))[0]
    assert (extended["status"], extended["deadline_ms"]) == ("collecting", deadline_ms + 60_000)
    await send_all(server, cohort)
    assert (await server.rounds(run_id))[0]["status"] == "committed"


async def test_a_run_ends_with_the_metric_it_was_meant_to_reach(server):
    target = {"name": "test_accuracy", "at_least": 0.8, "wait_s": 30}
    run_id, cohort = await server.a_round(rounds=9, target_metric=target)
    await send_all(server, cohort)
    assert (await server.show(run_id)).round == 1, "the next round waits for the metric"
    await an_evaluation(server, run_id, 1, test_accuracy=0.9)
    run = await server.show(run_id)
    assert (run.status, run.reason) == ("finished", "test_accuracy reached 0.9 with version 1")


async def test_a_metric_that_does_not_come_holds_a_run_no_longer_than_was_said(server):
    target = {"name": "test_accuracy", "at_least": 0.8, "wait_s": 30}
    run_id, cohort = await server.a_round(rounds=9, target_metric=target)
    await send_all(server, cohort)
    assert await tick(server.runner) == 30
    server.clock.advance(30_000)
    await tick(server.runner)
    assert (await server.show(run_id)).round == 2


async def test_a_run_ends_when_its_time_is_over(server):
    run_id, cohort = await server.a_round(rounds=9, max_duration_s=10, quorum=1)
    await cohort[0][0].send(cohort[0][1])
    server.clock.advance(10_000)
    await tick(server.runner)
    await server.aggregate_now()
    run = await server.show(run_id)
    assert (run.status, run.version, run.reason) == ("finished", 1, "max_duration_s (10) has passed")


async def test_a_run_whose_deadline_cannot_be_kept_stands_in_no_other_s_way(server, caplog):
    damaged, cohort = await server.a_round(2, deadline_s=60)
    whole = (await server.a_run(cohort_size=2, deadline_s=60)).run_id
    for worker, _ in cohort:
        await worker.ask()
    async with server.stores.records.write() as connection:
        await connection.execute(
            schema.runs.update().where(schema.runs.c.run_id == damaged).values(spec="{}", status="failed")
        )
    server.clock.advance(60_000)
    assert await tick(server.runner) == RETRY_S
    assert (await server.rounds(whole))[0]["status"] == "abandoned"
    assert f"deadlines of {damaged}" in caplog.text


async def test_a_run_goes_no_further_than_its_time_however_late_its_extensions_come(server):
    run_id, _ = await server.a_round(rounds=9, max_duration_s=100, deadline_s=60, max_extensions=9)
    started_ms = (await server.rounds(run_id))[0]["opened_ms"]
    server.clock.advance(70_000)
    await tick(server.runner)
    assert (await server.rounds(run_id))[0]["deadline_ms"] == started_ms + 100_000
    server.clock.advance(30_000)
    await tick(server.runner)
    assert (await server.show(run_id)).status == "finished"
