# SPDX-License-Identifier: Apache-2.0
"""What a worker is asked to do, and when."""

import asyncio

import pytest

from ps_service.routes.assignments import preferred_wait_s


async def test_a_waiting_worker_is_woken_by_the_creation_of_a_run(server):
    worker = await server.enrol("worker")
    async with asyncio.timeout(10):
        asking = asyncio.create_task(worker.assignment(wait_s=30))
        await server.someone_listens(f"worker/{worker.worker_id}")
        run = await server.a_run(cohort_size=1)
        assert (await asking)["run_id"] == run.run_id


async def test_nothing_to_do_is_no_content(server):
    worker = await server.enrol("worker")
    answer = await worker.ask()
    assert (answer.status_code, answer.content) == (204, b"")


async def test_a_wait_ends_at_the_time_preferred(start_server):
    server = await start_server(max_wait_s=0.05)
    worker = await server.enrol("worker")
    async with asyncio.timeout(5):
        assert (await worker.ask(wait_s=60)).status_code == 204  # the server's own limit is shorter


async def test_waiting_workers_are_sent_home_when_the_server_stops(server):
    worker = await server.enrol("worker")
    async with asyncio.timeout(5):
        asking = asyncio.create_task(worker.ask(wait_s=60))
        await server.someone_listens(f"worker/{worker.worker_id}")
        server.service.stop_waiting()
        assert (await asking).status_code == 204


async def test_the_same_assignment_is_answered_until_it_is_settled(server):
    _run_id, [(worker, assignment), _] = await server.a_round()
    assert await worker.assignment() == assignment
    assert (await worker.http.get(f"/v1/assignments/{assignment['assignment_id']}")).json() == assignment
    await worker.send(assignment)
    assert (await worker.ask()).status_code == 204


@pytest.mark.parametrize("joining", [("a", "b", "c"), ("c", "a", "b"), ("b", "c", "a")])
async def test_slots_follow_names_whatever_the_order_of_joining(server, joining):
    await server.a_run(cohort_size=3)
    workers = {name: await server.enrol(name) for name in joining}
    for name in joining:
        await workers[name].ask()
    slots = {name: (await worker.assignment())["slot"] for name, worker in workers.items()}
    assert slots == {"a": 0, "b": 1, "c": 2}


async def test_a_run_waits_for_a_whole_cohort(server):
    run = await server.a_run(cohort_size=2)
    first, second = await server.enrol("first"), await server.enrol("second")
    assert (await first.ask()).status_code == 204
    assert (await server.show(run.run_id)).status == "waiting"
    assert (await second.ask()).status_code == 200
    assert (await first.ask()).status_code == 200


async def test_an_assignment_says_everything_a_worker_needs(server):
    run_id, [(_, assignment), _] = await server.a_round(local_steps=7, encodings={"delta": "bf16"})
    run = await server.show(run_id)
    assert assignment["bundles"] == ["delta", "hessian"]  # version 0 asks for curvature
    assert assignment["encodings"] == {"delta": "bf16", "hessian": "f32"}
    assert assignment["tensors"] == run.tensors
    assert assignment["local_steps"] == 7
    assert assignment["optimizer"] == "sophia_shared"
    assert assignment["deadline_ms"] == server.clock.now_ms() + 60_000


async def test_declines_that_make_the_quorum_impossible_abandon_the_round(server):
    run_id, cohort = await server.a_round(3, quorum=2)
    for worker, assignment in cohort[:2]:
        url = f"/v1/assignments/{assignment['assignment_id']}/decline"
        assert (await worker.http.post(url, json={"reason": "battery"})).status_code == 204
        assert (await worker.http.post(url, json={"reason": "battery"})).status_code == 204
    first = (await server.rounds(run_id))[0]
    assert first["status"] == "abandoned"
    assert first["declined"] == 2
    assert "2 of 3 workers declined" in first["reason"]


async def test_a_reason_that_a_database_would_not_take_is_refused_by_name(server):
    run_id, [(worker, assignment), *_] = await server.a_round(3, quorum=2)
    url = f"/v1/assignments/{assignment['assignment_id']}/decline"
    refused = await worker.http.post(url, json={"reason": "flat \0 battery"})
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid-message")
    assert (await server.rounds(run_id))[0]["declined"] == 0


async def test_a_declined_assignment_takes_no_update(server):
    _, [(worker, assignment), _] = await server.a_round()
    await worker.http.post(f"/v1/assignments/{assignment['assignment_id']}/decline", json={"reason": "busy"})
    answer = await worker.declare(assignment, server.an_update(assignment).header)
    assert (answer.status_code, answer.json()["code"]) == (409, "assignment-declined")
    assert (await worker.ask()).status_code == 204


async def test_what_was_received_cannot_be_declined(server):
    _, [(worker, assignment), _] = await server.a_round()
    await worker.send(assignment)
    answer = await worker.http.post(
        f"/v1/assignments/{assignment['assignment_id']}/decline", json={"reason": "too late"}
    )
    assert (answer.status_code, answer.json()["code"]) == (409, "update-conflict")


async def test_declining_a_closed_round_changes_nothing(server):
    run_id, [(worker, assignment), _] = await server.a_round()
    await server.operator.post(f"/v1/runs/{run_id}/cancel")
    before = await server.rounds(run_id)
    url = f"/v1/assignments/{assignment['assignment_id']}"
    assert (await worker.http.post(f"{url}/decline", json={"reason": "late"})).status_code == 204
    assert await server.rounds(run_id) == before
    answer = await worker.declare(assignment, server.an_update(assignment).header)
    assert answer.json()["code"] == "run-ended"


async def test_an_evaluator_is_asked_about_each_version_once_and_its_first_report_stands(server):
    run_id, cohort = await server.a_round()
    evaluator = await server.enrol("judge", role="evaluator")
    assert (await evaluator.ask()).status_code == 204  # version 0 is nobody's work
    for worker, assignment in cohort:
        await worker.send(assignment)
    await server.aggregate_now()

    asked = await evaluator.assignment()
    run = await server.show(run_id)
    assert asked == {
        "kind": "evaluate",
        "schema_version": 1,
        "run_id": run_id,
        "version": 1,
        "task": "digits",
        "tensors": run.tensors,
        "heartbeat_s": 20.0,
    }
    for accuracy in (0.5, 0.9):
        report = {"version": 1, "num_examples": 10, "metrics": {"accuracy": accuracy}}
        answer = await evaluator.http.post(f"/v1/runs/{run_id}/metrics", json=report)
        assert answer.status_code == 204
    assert (await server.rounds(run_id))[0]["metrics"] == {"accuracy": 0.5}
    assert (await evaluator.ask()).status_code == 204


async def test_an_evaluator_is_woken_by_a_new_version(server):
    _, cohort = await server.a_round()
    evaluator = await server.enrol("judge", role="evaluator")
    async with asyncio.timeout(10):
        asking = asyncio.create_task(evaluator.assignment(wait_s=30))
        await server.someone_listens(f"worker/{evaluator.worker_id}")
        for worker, assignment in cohort:
            await worker.send(assignment)
        assert (await asking)["version"] == 1


async def test_evaluators_count_by_their_examples(server):
    run_id, cohort = await server.a_round()
    for worker, assignment in cohort:
        await worker.send(assignment)
    await server.aggregate_now()
    for name, accuracy, num_examples in (("judge-1", 0.5, 30), ("judge-2", 0.9, 10)):
        judge = await server.enrol(name, role="evaluator")
        report = {"version": 1, "num_examples": num_examples, "metrics": {"accuracy": accuracy}}
        await judge.http.post(f"/v1/runs/{run_id}/metrics", json=report)
    assert (await server.rounds(run_id))[0]["metrics"]["accuracy"] == pytest.approx(0.6)


async def test_absurd_metrics_leave_the_listing_readable(server):
    run_id, cohort = await server.a_round()
    for worker, assignment in cohort:
        await worker.send(assignment, server.an_update(assignment, metrics={"train_loss": 1.7e308}))
    await server.aggregate_now()
    for name in ("judge-1", "judge-2"):
        judge = await server.enrol(name, role="evaluator")
        report = {"version": 1, "num_examples": 10**7, "metrics": {"loss": -1.7e308}}
        assert (await judge.http.post(f"/v1/runs/{run_id}/metrics", json=report)).status_code == 204
    metrics = (await server.rounds(run_id))[0]["metrics"]
    assert metrics["train_loss"] == pytest.approx(1.7e308)
    assert metrics["loss"] == pytest.approx(-1.7e308)


async def test_an_evaluator_cannot_report_what_is_not_there(server):
    run_id, _ = await server.a_round()
    judge = await server.enrol("judge", role="evaluator")
    stranger = await server.enrol("stranger", role="evaluator", tasks=("other",))
    report = {"version": 1, "num_examples": 1, "metrics": {"accuracy": 1.0}}
    assert (await judge.http.post(f"/v1/runs/{run_id}/metrics", json=report)).status_code == 404
    assert (await stranger.http.post(f"/v1/runs/{run_id}/metrics", json=report)).status_code == 404


@pytest.mark.parametrize(
    ("prefer", "wait_s"),
    [
        ("", 0),
        ("wait=30", 30),
        ("Wait=30", 30),
        ("respond-async, wait=5", 5),
        ("wait=5; foo", 5),
        ("nowait=5", 0),
        ("wait=-5", 0),
        ("wait=", 0),
        ("wait=abc", 0),
    ],
)
def test_a_preference_to_wait_is_read_from_among_others(prefer, wait_s):
    assert preferred_wait_s(prefer) == wait_s


async def test_a_heartbeat_changes_the_tasks_and_the_last_sight(server):
    worker = await server.enrol("worker", tasks=("old",))
    server.clock.advance(5_000)
    answer = await worker.http.post(f"/v1/workers/{worker.worker_id}/heartbeat", json={"tasks": ["new"]})
    assert answer.status_code == 204
    [row] = (await server.operator.get("/v1/workers")).json()["workers"]
    assert (row["tasks"], row["last_seen_ms"]) == (["new"], server.clock.now_ms())


async def test_a_heartbeat_says_what_a_worker_trains_on_and_the_last_word_stands(server):
    worker = await server.enrol("worker", tasks=("digits",))
    beat = f"/v1/workers/{worker.worker_id}/heartbeat"
    devices = []
    for said in (None, "cpu", None, "NVIDIA L4", "NVIDIA L4", None):
        assert (await worker.http.post(beat, json={"device": said})).status_code == 204
        [row] = (await server.operator.get("/v1/workers")).json()["workers"]
        devices.append(row["device"])
    assert devices == [None, "cpu", "cpu", "NVIDIA L4", "NVIDIA L4", "NVIDIA L4"]


@pytest.mark.parametrize("device", ["", "x" * 129, 7, "a\x00b", "\x1b[31mred", "two\nlines"])
async def test_what_cannot_be_a_device_s_name_is_refused(server, device):
    worker = await server.enrol("worker", tasks=("digits",))
    answer = await worker.http.post(f"/v1/workers/{worker.worker_id}/heartbeat", json={"device": device})
    assert answer.json()["code"] == "invalid-message"
