# SPDX-License-Identifier: Apache-2.0
"""Asynchronous runs: whoever has sent an update trains on, and every so many updates make a version."""

import json

import numpy as np
import pytest
from sqlalchemy import select

from protocol.algorithms import algorithm_named
from protocol.bound import DeltaBound
from ps_service.deadlines import tick
from ps_service.storage import schema
from tests.ps_service.asynchronous_runs import a_cohort, collected, state_of
from tests.ps_service.conftest import MODEL, values_like
from tests.ps_service.small_federation import code_of


async def test_a_slow_worker_never_delays_a_fast_one(start_server):
    """One of three answers alone, ten times: five versions are made, and each turn starts from the newest."""
    server = await start_server(performing=False)
    run_id, [fast, *slow] = await a_cohort(server, 3)
    held = [await worker.assignment() for worker in slow]
    for turn in range(10):
        assignment = await fast.assignment()
        assert assignment["version"] == turn // 2
        assert (await fast.send(assignment)).outcome == "pending"
        await server.aggregate_now()
    assert (await server.show(run_id)).version == 5
    assert [await worker.assignment() for worker in slow] == held, "what they are at is theirs still"
    assert [row["staleness"] for row in await server.rounds(run_id)][:5] == [[2]] * 5


async def test_every_turn_has_a_seed_of_its_own(start_server):
    server = await start_server(performing=False)
    _, [worker] = await a_cohort(server, 1, cohort_size=5)
    seeds = []
    for _ in range(4):
        assignment = await worker.assignment()
        seeds.append(assignment["seed"])
        await worker.send(assignment, server.an_update(assignment, seed=len(seeds)))
    assert len(set(seeds)) == 4, "all within one round and from one version"


async def test_an_update_is_counted_in_the_version_it_came_for_and_says_how_stale_it_was(start_server):
    server = await start_server(performing=False)
    run_id, [fast, slow] = await a_cohort(server, 2)
    late = await slow.assignment()
    for _ in range(4):
        await fast.send(await fast.assignment())
        await server.aggregate_now()
    receipt = await slow.send(late)
    await fast.send(await fast.assignment())
    await server.aggregate_now()
    answer = await slow.http.get(f"/v1/assignments/{late['assignment_id']}/update")
    assert (answer.json()["outcome"], answer.json()["version"]) == ("counted", 3)
    assert receipt.digest == answer.json()["digest"]
    assert (await server.rounds(run_id))[2]["staleness"] == [1, 0, 1]


async def test_what_is_too_stale_is_refused_by_name_and_changes_nothing(start_server):
    server = await start_server(performing=False)
    run_id, [fast, slow] = await a_cohort(server, 2, cohort_size=1, max_staleness=2)
    late = await slow.assignment()
    update = server.an_update(late)
    offer = (await slow.declare(late, update.header)).json()
    for _ in range(3):
        await fast.send(await fast.assignment())
        await server.aggregate_now()
    before = await server.inventory()
    assert code_of(await slow.declare(late, update.header)) == "too-stale"
    assert code_of(await slow.put(offer["upload_url"], update.body)) == "too-stale"
    assert await server.inventory() == before
    assert (await slow.assignment())["version"] == 3, "and it is given something newer to do"
    assert (await server.show(run_id)).version == 3


async def test_what_comes_while_a_version_is_made_is_counted_in_the_next(start_server):
    server = await start_server(performing=False)
    run_id, cohort = await a_cohort(server, 4)
    assignments = [await worker.assignment() for worker in cohort]
    for worker, assignment in zip(cohort, assignments, strict=True):
        receipt = await worker.send(assignment)
    assert receipt.outcome == "pending"
    assert (await server.show(run_id)).round == 1
    assert (await cohort[1].ask()).status_code == 204, "nobody begins from a version that is being replaced"
    await server.aggregate_now()
    first, second = await server.rounds(run_id)
    assert (first["status"], first["admitted"], first["staleness"]) == ("committed", 2, [2])
    assert (second["status"], second["admitted"], second["staleness"]) == ("aggregating", 2, [0, 2])
    assert second["bytes_up"] == first["bytes_up"] > 0
    await server.aggregate_now()
    assert (await server.show(run_id)).version == 2
    assert (await cohort[1].assignment())["version"] == 2


async def test_staleness_counts_to_the_version_that_an_update_can_still_be_part_of(start_server):
    """Made from version 0 while version 1 is being made, it would be part of version 2: one version stale."""
    server = await start_server(performing=False)
    _, [fast, slow] = await a_cohort(server, 2, cohort_size=1, max_staleness=0)
    late = await slow.assignment()
    await fast.send(await fast.assignment())
    assert code_of(await slow.declare(late, server.an_update(late).header)) == "too-stale"


async def test_no_version_that_someone_may_still_push_against_is_collected(start_server):
    server = await start_server(performing=False)
    keep_one = {"retention": {"last": 1}}
    run_id, [fast, slow] = await a_cohort(server, 2, cohort_size=1, max_staleness=4, spec=keep_one)
    late = await slow.assignment()
    for version in range(1, 6):
        await fast.send(await fast.assignment())
        await server.aggregate_now()
        gone = set(range(version)) if version == 5 else set(range(1, version))
        assert await collected(server, run_id) == gone, (
            "the slow worker's own is kept while it may still come"
        )
    assert code_of(await slow.declare(late, server.an_update(late).header)) == "too-stale"


async def test_a_stale_update_is_combined_even_when_all_but_it_is_collected(start_server):
    server = await start_server(performing=False)
    keep_one = {"retention": {"last": 1}}
    run_id, [fast, slow] = await a_cohort(server, 2, cohort_size=1, spec=keep_one)
    late = await slow.assignment()
    for _ in range(3):
        await fast.send(await fast.assignment())
        await server.aggregate_now()
    assert (await slow.send(late)).outcome == "pending"
    await server.aggregate_now()
    assert (await server.show(run_id)).version == 4
    assert await collected(server, run_id) == {0, 1, 2}


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
async def test_the_bound_is_that_of_the_version_an_update_was_made_from(start_server, weight_decay):
    """The farthest honest delta from version 0 is taken although θ has moved since; one farther is not."""
    server = await start_server(performing=False)
    values = {"max_round_step": 0.04, "weight_decay": weight_decay}
    _, [fast, slow] = await a_cohort(
        server, 2, cohort_size=1, spec={"hyperparameters": values, "local_steps": 3}
    )
    late = await slow.assignment()
    start = values_like(MODEL, 0.1)
    for seed in range(3):  # as far from version 0 as it goes
        assignment = await fast.assignment()
        await fast.send(assignment, server.an_update(assignment, 0.039, seed=seed))
        await server.aggregate_now()
    bound = bound_of(late)
    farthest = {
        name: (np.float32(bound.radius) - np.float32(bound.shrinkage) * theta).astype(np.float32)
        for name, theta in start.items()
    }
    too_far = {name: delta * np.float32(1.01) for name, delta in farthest.items()}
    refused = server.an_update(late, bundles={"delta": too_far})
    offer = (await slow.declare(late, refused.header)).json()
    assert code_of(await slow.put(offer["upload_url"], refused.body)) == "outside-bound"
    await slow.send(late, server.an_update(late, bundles={"delta": farthest}))


def bound_of(assignment: dict) -> DeltaBound:
    settings = {
        name: assignment["settings"][name] for name in ("learning_rate", "clip_bound", "weight_decay")
    }
    return DeltaBound.after(assignment["local_steps"], **settings)


async def test_the_next_state_is_that_of_the_equations(start_server):
    """Two of five workers' updates, 0 and 2 versions stale, of 4 and 10 steps: θ, q̄ anew in float64.

    The share is 2/5; c is left to the algorithm, and is 1 − 2/5.
    """
    server = await start_server(performing=False)
    values = {"weight_decay": 0.5, "refresh_rounds": 1_000}
    run_id, [fast, slow, *_] = await a_cohort(
        server, 5, cohort_size=2, staleness_exponent=0.5, spec={"hyperparameters": values}
    )
    late = await slow.assignment()
    for seed in range(4):
        assignment = await fast.assignment()
        await fast.send(assignment, server.an_update(assignment, 0.02, seed=seed))
        await server.aggregate_now()
    before, first = await state_of(server, run_id), await state_of(server, run_id, 0)
    fresh = await fast.assignment()
    deltas = {0: values_like(MODEL, 0.01, 7), 2: values_like(MODEL, -0.015, 8)}
    await fast.send(fresh, server.an_update(fresh, bundles={"delta": deltas[0]}, local_steps=4))
    await slow.send(late, server.an_update(late, bundles={"delta": deltas[2]}))
    await server.aggregate_now()
    after = await state_of(server, run_id)

    weights = {0: 1.0, 2: 3**-0.5}
    hyperparameters = algorithm_named("fed-sophia-shared").parse(values)
    for name in MODEL:
        theta = before["params"][name].astype(np.float64)
        starts = {0: theta, 2: first["params"][name].astype(np.float64)}
        bounds = {0: hyperparameters.bound(4, 10), 2: hyperparameters.bound(10, 10)}
        q = {s: (deltas[s][name] + bounds[s].shrinkage * starts[s]) / bounds[s].radius for s in deltas}
        mean = {s: weights[s] / sum(weights.values()) for s in weights}
        moved = sum(mean[s] * deltas[s][name] for s in deltas)
        direction = 0.6 * before["direction"][name] + 0.4 * sum(mean[s] * q[s] for s in q)
        np.testing.assert_allclose(after["params"][name], theta + 0.4 * moved, rtol=2e-6)
        np.testing.assert_allclose(after["direction"][name], direction, rtol=2e-5, atol=1e-7)


async def test_each_worker_refreshes_the_hessian_in_turns_of_its_own(start_server):
    """R_h = 3: it is wanted with the turns 1, 4, 7 … of each worker."""
    server = await start_server(performing=False)
    _, cohort = await a_cohort(server, 2, cohort_size=4, spec={"hyperparameters": {"refresh_rounds": 3}})
    for worker in cohort:
        wanted = []
        for turn in range(7):
            assignment = await worker.assignment()
            wanted.append("hessian" in assignment["bundles"])
            await worker.send(assignment, server.an_update(assignment, seed=turn))
            await server.aggregate_now()
        assert wanted == [True, False, False, True, False, False, True]


async def test_estimates_of_several_rounds_are_combined_once_and_kept_until_then(start_server):
    """R_h = 4, one update a version, four workers in turn: updates 0 to 3 and 16 to 19 bring estimates.

    Versions 1, 5, 9 … combine what came for the three versions before and with them: update 0 alone is too
    few, 1 to 3 make version 5, 16 alone is too few, 17 to 19 make version 21. By hand: h ← 0.9·h + 0.1·mean.
    """
    server = await start_server(performing=False)
    spec = {"hyperparameters": {"refresh_rounds": 4}, "combiners": {"hessian": "mean"}}
    run_id, cohort = await a_cohort(server, 4, cohort_size=1, staleness_exponent=0, spec=spec)
    for number in range(21):
        worker = cohort[number % 4]
        assignment = await worker.assignment()
        hessian = {name: np.full(shape, 10.0 * number, np.float32) for name, shape in MODEL.items()}
        wanted = "hessian" in assignment["bundles"]
        assert wanted == (number // 4 in (0, 4))
        bundles = {"hessian": hessian} if wanted else {}
        await worker.send(assignment, server.an_update(assignment, seed=number, bundles=bundles))
        await server.aggregate_now()
        held = (await state_of(server, run_id)).get("hessian", {"weight": np.zeros((2, 3))})
        after_version_5 = 0.1 * 20
        expected = 0 if number < 4 else after_version_5 if number < 20 else 0.9 * after_version_5 + 0.1 * 180
        np.testing.assert_allclose(held["weight"], expected, rtol=1e-6)


async def test_a_worker_that_sends_many_estimates_and_deltas_has_one_say(start_server):
    """One sends three updates of a version of five, the others one each; its last estimate is taken."""
    server = await start_server(performing=False)
    spec = {"hyperparameters": {"refresh_rounds": 1}, "combiners": {"hessian": "mean"}}
    run_id, [many, *others] = await a_cohort(server, 3, cohort_size=5, staleness_exponent=0, spec=spec)
    before = await state_of(server, run_id)
    sent = []
    for worker, size in [(many, 1e6), (many, 1e6), (many, 7.0), (others[0], 1.0), (others[1], 1.0)]:
        assignment = await worker.assignment()
        hessian = {name: np.full(shape, size, np.float32) for name, shape in MODEL.items()}
        delta = values_like(MODEL, 0.01, seed=len(sent))
        sent.append(delta["weight"].astype(np.float64))
        bundles = {"delta": delta, "hessian": hessian}
        await worker.send(assignment, server.an_update(assignment, bundles=bundles))
    await server.aggregate_now()
    after = await state_of(server, run_id)
    np.testing.assert_allclose(after["hessian"]["weight"], 0.1 * (7 + 1 + 1) / 3, rtol=1e-6)
    moved = (sum(sent[:3]) / 3 + sent[3] + sent[4]) / 3
    np.testing.assert_allclose(after["params"]["weight"], before["params"]["weight"] + moved, rtol=2e-6)


async def test_so_few_estimates_that_nothing_could_be_trimmed_are_left_out(start_server):
    """Two of four workers: a liar among them would have a half."""
    server = await start_server(performing=False)
    run_id, [first, second, *_] = await a_cohort(server, 4, cohort_size=2)
    for worker in (first, second):
        await worker.send(await worker.assignment())
    await server.aggregate_now()
    assert set((await server.show(run_id)).tensors) == {"params", "direction"}


async def test_a_buffer_that_nobody_fills_is_closed_by_its_deadline(start_server):
    server = await start_server(performing=False)
    run_id, [worker, _] = await a_cohort(server, 2, cohort_size=3, quorum=2)
    assignment = await worker.assignment()
    await worker.send(assignment)
    server.clock.advance(60_000)
    await tick(server.runner)
    first, second = await server.rounds(run_id)
    assert first["reason"] == "the deadline passed with 1 updates of 1 workers; the quorum is 2"
    receipt = (await worker.http.get(f"/v1/assignments/{assignment['assignment_id']}/update")).json()
    assert receipt["outcome"] == "not-counted"
    assert second["status"] == "collecting"


async def test_what_waits_for_a_round_when_the_run_ends_is_told_so(start_server):
    server = await start_server(performing=False)
    run_id, cohort = await a_cohort(server, 3, cohort_size=1, rounds=1)
    for worker in cohort:
        last = await worker.assignment()
        await worker.send(last)
    await server.aggregate_now()
    assert (await server.show(run_id)).status == "finished"
    receipt = (await cohort[2].http.get(f"/v1/assignments/{last['assignment_id']}/update")).json()
    assert (receipt["outcome"], receipt["reason"]) == ("not-counted", "the run is finished")
    assert (await cohort[0].ask()).status_code == 204
    await server.service.housekeeping.look()
    digests = {
        digest for state in ("params", "direction") for digest in [(await server.show(run_id)).tensors[state]]
    }
    _, files = await server.inventory()
    kept = {file.rpartition("/")[2] for file in files}
    assert receipt["digest"] not in kept
    assert digests <= kept


async def test_no_metric_is_waited_for(start_server):
    server = await start_server(performing=False)
    target = {"target_metric": {"name": "loss", "at_most": 0.1}}
    _, [worker] = await a_cohort(server, 1, cohort_size=1, spec=target)
    await worker.send(await worker.assignment())
    await server.aggregate_now()
    assert (await worker.assignment())["version"] == 1


async def test_a_restart_changes_nothing_of_what_is_in_hand(start_server, tmp_path):
    server = await start_server(performing=False, on_disk=True)
    run_id, [fast, slow] = await a_cohort(server, 2, cohort_size=2)
    held = await slow.assignment()
    await fast.send(await fast.assignment())
    again = await start_server(performing=False, on_disk=True)
    fast.server = slow.server = again
    fast.move_to(again)
    slow.move_to(again)
    assert await slow.assignment() == held
    await slow.send(held)
    await again.aggregate_now()
    assert (await again.show(run_id)).version == 1
    async with again.stores.records.read() as connection:
        headers = (await connection.execute(select(schema.updates.c.header))).scalars()
        assert len({json.loads(header)["digest"] for header in headers}) == 1


@pytest.mark.parametrize(
    "policies",
    [
        {"cohort_size": None, "cohort_fraction": 0.5, "min_workers": 2},
        {"over_selection": 1.5},
        {"adaptive_deadline": {}},
    ],
)
async def test_policies_that_mean_nothing_in_an_asynchronous_run_are_refused(server, policies):
    answer = await server.operator.post("/v1/runs", json=await server.a_spec(asynchronous={}, **policies))
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-message")
    assert "asynchronous: " in answer.json()["detail"]
