# SPDX-License-Identifier: Apache-2.0
"""Runs as an operator sees them: created, followed, closed early, ended."""

import sys

import numpy as np
import pytest

from protocol.codec import MEDIA_TYPE, decode_message, digest_of
from ps_service.deadlines import tick
from ps_service.effects import perform_effects
from ps_service.storage import update_records

IMPOSSIBLE = [
    ({"params_digest": "0" * 64}, "unknown-tensors"),
    ({"model": [{"name": "weight", "shape": [3, 2]}, {"name": "bias", "shape": [3]}]}, "shape-mismatch"),
    ({"model": [{"name": "bias", "shape": [3]}, {"name": "weight", "shape": [2, 3]}]}, "shape-mismatch"),
    ({"model": [{"name": "weight", "shape": [2, 3]}]}, "shape-mismatch"),
    ({"combiners": {"delta": "loudest"}}, "invalid-message"),
    ({"combiners": {"control": "mean"}}, "invalid-message"),
    ({"algorithm": "adam"}, "invalid-message"),
    ({"hyperparameters": {"rho": 1}}, "invalid-message"),
    ({"hyperparameters": {"max_round_step": -1}}, "invalid-message"),
    ({"quorum": 3}, "invalid-message"),
    ({"rounds": 0}, "invalid-message"),
    ({"deadline_s": "NaN"}, "invalid-message"),
    ({"surprise": 1}, "invalid-message"),
    ({"schema_version": 2}, "invalid-message"),
]


async def test_a_run_that_cannot_work_is_refused_and_not_kept(server):
    spec = await server.a_spec()
    before = await server.inventory()
    for changes, code in IMPOSSIBLE:
        answer = await server.operator.post("/v1/runs", json=spec | changes)
        assert (answer.status_code, answer.json()["code"]) == (422, code), changes
        assert await server.inventory() == before, changes


async def test_params_of_another_bundle_are_refused(server, message):
    content = message("state", {"hessian": {"weight": np.zeros((2, 3)), "bias": np.zeros(3)}})
    digest = digest_of([content])
    put = await server.operator.put(
        f"/v1/tensors/{digest}", content=content, headers={"Content-Type": MEDIA_TYPE}
    )
    assert put.status_code == 201
    answer = await server.operator.post("/v1/runs", json=await server.a_spec(params_digest=digest))
    assert answer.json()["code"] == "shape-mismatch"


async def test_a_run_is_shown_and_listed_newest_first(server):
    first = await server.a_run(name="first")
    server.clock.advance(1)
    second = await server.a_run(name="second")
    assert await server.show(first.run_id) == first
    assert (first.status, first.version, first.round, first.members) == ("waiting", 0, 0, 0)
    runs = (await server.operator.get("/v1/runs")).json()["runs"]
    assert [run["run_id"] for run in runs] == [second.run_id, first.run_id]


async def test_unknown_runs_and_rounds_are_not_found(server):
    run = await server.a_run()
    r = f"/v1/runs/{run.run_id}/rounds"
    for method, url in [
        ("GET", "/v1/runs/run-nothing"),
        ("GET", "/v1/runs/run-nothing/rounds"),
        ("GET", "/v1/runs/run-nothing/versions"),
        ("GET", "/v1/runs/run-nothing/events"),
        ("POST", "/v1/runs/run-nothing/cancel"),
        ("POST", "/v1/runs/run-nothing/rounds/1/aggregate"),
        ("POST", f"{r}/1/aggregate"),
        ("POST", f"{r}/{2**63 - 1}/aggregate"),
    ]:
        answer = await server.operator.request(method, url)
        assert (answer.status_code, answer.json()["code"]) == (404, "not-found"), url
    for url in (f"{r}?after={10**30}", f"{r}?after=-1", f"{r}?after=x"):
        assert (await server.operator.get(url)).json()["code"] == "invalid-message"
    assert (await server.operator.post(f"{r}/{10**30}/aggregate")).json()["code"] == "invalid-message"


async def test_a_run_ends_after_so_many_versions(server):
    run_id, cohort = await server.a_round(rounds=2)
    start = await server.show(run_id)
    for _ in range(2):
        for worker, _ in cohort:
            await worker.send(await worker.assignment())
        await server.aggregate_now()
        server.clock.advance(10)

    run = await server.show(run_id)
    assert (run.status, run.version, run.round, run.reason) == ("finished", 2, 2, None)
    assert run.ended_ms is not None
    versions = (await server.operator.get(f"/v1/runs/{run_id}/versions")).json()["versions"]
    assert [version["version"] for version in versions] == [0, 1, 2]
    assert versions[0]["tensors"] == start.tensors
    assert versions[2]["tensors"] == run.tensors
    assert set(run.tensors) == {"params", "direction", "hessian"}
    rounds = await server.rounds(run_id)
    assert [(r["round"], r["status"], r["version"]) for r in rounds] == [
        (1, "committed", 1),
        (2, "committed", 2),
    ]
    later = await server.operator.get(f"/v1/runs/{run_id}/rounds?after=1")
    assert later.json()["rounds"] == rounds[1:]
    assert (await cohort[0][0].ask()).status_code == 204


async def test_a_version_holds_what_the_workers_sent(server):
    """fedavg: the mean of the two deltas is added to the initial params."""
    run_id, cohort = await server.a_round(algorithm="fedavg", rounds=1)
    start = await read_params(server, run_id)
    updates = [server.an_update(assignment, 0.01, seed=i) for i, (_, assignment) in enumerate(cohort)]
    for (worker, assignment), update in zip(cohort, updates, strict=True):
        await worker.send(assignment, update)
    await server.aggregate_now()
    after = await read_params(server, run_id)
    deltas = [decode_message(update.body)["delta"] for update in updates]
    for name, values in after.items():
        mean = (deltas[0][name].astype(float) + deltas[1][name]) / 2
        np.testing.assert_allclose(values, start[name] + mean, rtol=1e-6)


async def read_params(server, run_id):
    digest = (await server.show(run_id)).tensors["params"]
    content = (await server.operator.get(f"/v1/runs/{run_id}/tensors/{digest}")).content
    return decode_message(content)["params"]


async def test_who_comes_first_changes_no_bit_of_the_result(start_server, tmp_path):
    digests = set()
    for order in (1, -1):
        server = await start_server(directory=tmp_path / f"order{order}", performing=False)
        run_id, cohort = await server.a_round(8, rounds=1)
        sending = [(w, a, server.an_update(a, 0.03 / 3**i, seed=i)) for i, (w, a) in enumerate(cohort)]
        for worker, assignment, update in sending[::order]:
            await worker.send(assignment, update)
        async with server.stores.records.read() as connection:
            updates = await update_records.updates_of_round(connection, run_id, 1)
        in_slot_order = [assignment["assignment_id"] for _, assignment in cohort]
        assert [update.assignment_id for update in updates] == in_slot_order
        await server.aggregate_now()
        digests.add(tuple((await server.show(run_id)).tensors.items()))
    assert len(digests) == 1


async def test_closing_now_needs_a_quorum(server):
    run_id, cohort = await server.a_round(3, quorum=2)
    url = f"/v1/runs/{run_id}/rounds/1/aggregate"
    await cohort[0][0].send(cohort[0][1])
    before = await server.rounds(run_id)
    answer = await server.operator.post(url)
    assert (answer.status_code, answer.json()["code"]) == (409, "quorum-missing")
    assert await server.rounds(run_id) == before
    await cohort[1][0].send(cohort[1][1])
    answer = await server.operator.post(url)
    assert (answer.status_code, answer.json()["status"]) == (202, "aggregating")
    await server.aggregate_now()
    assert (await server.operator.post(url)).json()["status"] == "committed"
    assert (await server.show(run_id)).version == 1


async def test_the_deadline_closes_a_round_that_has_a_quorum(server):
    run_id, cohort = await server.a_round(3, quorum=2, deadline_s=5)
    for worker, assignment in cohort[:2]:
        await worker.send(assignment)
    server.clock.advance(4_999)
    assert await tick(server.runner) == pytest.approx(0.001)
    assert (await server.rounds(run_id))[0]["status"] == "collecting"
    server.clock.advance(1)
    await tick(server.runner)
    await server.aggregate_now()
    first, second = await server.rounds(run_id)
    assert (first["status"], first["admitted"]) == ("committed", 2)
    assert second["deadline_ms"] == second["opened_ms"] + 5_000


async def test_abandoned_rounds_fail_the_run_and_say_what_became_of_the_update(server):
    run_id, cohort = await server.a_round(2, quorum=2, deadline_s=5, max_abandoned_rounds=2)
    worker, assignment = cohort[0]
    await worker.send(assignment)
    for _ in range(2):
        server.clock.advance(5_000)
        await tick(server.runner)
    run = await server.show(run_id)
    assert (run.status, run.version) == ("failed", 0)
    assert "2 rounds in a row were abandoned" in run.reason
    receipt = (await worker.http.get(f"/v1/assignments/{assignment['assignment_id']}/update")).json()
    assert (receipt["outcome"], receipt["version"]) == ("not-counted", None)
    assert "the deadline passed with 1 updates; the quorum is 2 of 2" in receipt["reason"]


async def test_a_cancelled_run_abandons_its_round_and_stays_cancelled(server):
    run_id, [(worker, assignment), _] = await server.a_round()
    for _ in range(2):
        answer = await server.operator.post(f"/v1/runs/{run_id}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert (await server.rounds(run_id))[0]["reason"] == "the run ended"
    assert (await worker.ask()).status_code == 204
    answer = await worker.declare(assignment, server.an_update(assignment).header)
    assert (answer.status_code, answer.json()["code"]) == (409, "run-ended")


async def test_a_run_cancelled_while_it_aggregates_makes_no_version(start_server):
    server = await start_server(performing=False)
    run_id, cohort = await server.a_round()
    receipts = [await worker.send(assignment) for worker, assignment in cohort]
    assert (await server.rounds(run_id))[0]["status"] == "aggregating"
    await server.operator.post(f"/v1/runs/{run_id}/cancel")
    await server.aggregate_now()
    run = await server.show(run_id)
    assert (run.status, run.version) == ("cancelled", 0)
    url = f"/v1/assignments/{receipts[0].assignment_id}/update"
    assert (await server.operator.get(url)).json()["outcome"] == "not-counted"


async def test_updates_whose_sum_overflows_abandon_the_round_by_name(server):
    run_id, cohort = await server.a_round(algorithm="fedavg", rounds=2)
    huge = {"delta": {"weight": np.full((2, 3), 3.4e38), "bias": np.zeros(3)}}
    for _ in range(2):  # the first mean still fits into float32
        for worker, _ in cohort:
            assignment = await worker.assignment()
            await worker.send(assignment, server.an_update(assignment, bundles=huge))
        await server.aggregate_now()
    first = (await server.rounds(run_id))[1]
    assert first["status"] == "abandoned"
    assert first["reason"] == "aggregation failed: the next params: weight: holds NaN or an infinity"
    assert (await server.show(run_id)).version == 1


async def test_one_run_that_cannot_be_aggregated_does_not_hold_up_another(start_server):
    server = await start_server(performing=False)
    _, broken = await server.a_round(task="digits")
    for worker, assignment in broken:
        await worker.send(assignment)
    other = await server.a_run(task="other", cohort_size=1)
    worker = await server.enrol("other", tasks=("other",))
    await worker.send(await worker.assignment())
    async with server.stores.records.write() as connection:  # its first update's row becomes unreadable
        await connection.exec_driver_sql(
            "UPDATE updates SET header = '{}' WHERE slot = 0 AND run_id != ?", (other.run_id,)
        )
    assert not await perform_effects(server.runner)
    assert (await server.show(other.run_id)).version == 1


async def test_a_lost_update_abandons_the_round_by_name(start_server):
    server = await start_server(performing=False)
    run_id, cohort = await server.a_round()
    for number, (worker, assignment) in enumerate(cohort):
        receipt = await worker.send(assignment, server.an_update(assignment, seed=number))
    server.stores.blobs.delete(receipt.digest)
    await server.aggregate_now()
    first = (await server.rounds(run_id))[0]
    assert first["status"] == "abandoned"
    assert first["reason"] == f"aggregation failed: tensor message {receipt.digest} is missing"


async def test_a_run_below_its_quorum_waits_for_new_workers(server):
    run_id, cohort = await server.a_round(2, quorum=2, rounds=5)
    for worker, assignment in cohort:
        await worker.send(assignment)
    await server.operator.delete(f"/v1/workers/{cohort[0][0].worker_id}")
    await server.aggregate_now()
    if (await server.show(run_id)).round == 2:  # opened before the revocation: its deadline ends it
        server.clock.advance(60_000)
        await tick(server.runner)
    assert (await server.show(run_id)).status == "waiting"
    newcomer = await server.enrol("newcomer")
    assert (await newcomer.assignment())["slot"] == 2
    assert (await server.show(run_id)).status == "running"


async def test_bytes_sent_to_trainers_are_counted_for_the_round(server):
    run_id, cohort = await server.a_round()
    evaluator = await server.enrol("evaluator", role="evaluator")
    sent = 0
    for worker, assignment in cohort:
        url = f"/v1/runs/{run_id}/tensors/{assignment['tensors']['params']}"
        sent += len((await worker.http.get(url)).content)
        assert (await evaluator.http.get(url)).status_code == 200
        await worker.send(assignment)
    await server.aggregate_now()
    first = (await server.rounds(run_id))[0]
    assert first["bytes_down"] == sent
    assert first["bytes_up"] == 2 * len(server.an_update(cohort[0][1]).body)


async def test_the_workers_own_metrics_are_averaged_over_the_round(server):
    run_id, cohort = await server.a_round()
    for loss, (worker, assignment) in zip((1.0, 2.0), cohort, strict=True):
        await worker.send(assignment, server.an_update(assignment, metrics={"train_loss": loss}))
    assert (await server.rounds(run_id))[0]["metrics"] == {"train_loss": 1.5}


async def test_of_the_workers_machines_a_round_has_the_mean_and_the_energy_of_all_of_them(server):
    run_id, cohort = await server.a_round()
    said = [
        {"step_ms": 10.0, "peak_memory_bytes": 4e9, "energy_joules": 100.0},
        {"step_ms": 30.0, "peak_memory_bytes": 2e9},
    ]
    for metrics, (worker, assignment) in zip(said, cohort, strict=True):
        await worker.send(assignment, server.an_update(assignment, metrics=metrics))
    assert (await server.rounds(run_id))[0]["metrics"] == {
        "step_ms": 20.0,
        "peak_memory_bytes": 3e9,
        "energy_joules": 100.0,
    }


@pytest.mark.parametrize(("said", "told"), [((100.0, 50.5), 150.5), ((1.7e308, 1.7e308), sys.float_info.max)])
async def test_the_energy_of_a_round_s_workers_is_added_up_and_stays_finite(server, said, told):
    run_id, cohort = await server.a_round()
    for joules, (worker, assignment) in zip(said, cohort, strict=True):
        await worker.send(assignment, server.an_update(assignment, metrics={"energy_joules": joules}))
    assert (await server.rounds(run_id))[0]["metrics"] == {"energy_joules": pytest.approx(told)}
