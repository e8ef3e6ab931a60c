# SPDX-License-Identifier: Apache-2.0
"""An algorithm of two phases: what each version asks for, makes and leaves as it was."""

import numpy as np

from protocol.codec import decode_message
from tests.ps_service.conftest import MODEL, values_like


async def tensors_of(server, run_id, bundle):
    digest = (await server.show(run_id)).tensors[bundle]
    answer = await server.operator.get(f"/v1/runs/{run_id}/tensors/{digest}")
    return decode_message(answer.content)[bundle]


async def answered_by_all(server, workers):
    """Every worker's next assignment, with its update sent."""
    assignments = [await worker.assignment() for worker in workers]
    for seed, (worker, assignment) in enumerate(zip(workers, assignments, strict=True)):
        await worker.send(assignment, server.an_update(assignment, seed=seed))
    await server.aggregate_now()
    return assignments


def asked(assignment):
    return assignment["version"], assignment["phase"], assignment["bundles"]


async def test_phases_take_turns_and_each_moves_its_own_half_of_the_state(start_server):
    server = await start_server(performing=False)
    run_id, cohort = await server.a_round(
        algorithm="done", rounds=4, hyperparameters={"server_learning_rate": 0.5}
    )
    workers = [worker for worker, _ in cohort]
    first, start = (await server.show(run_id)).tensors, values_like(MODEL, 0.1)
    assert set(first) == {"params"}
    mean = {
        name: (values_like(MODEL, 0.005, 0)[name] + values_like(MODEL, 0.005, 1)[name]) / 2 for name in MODEL
    }

    assert [asked(each) for each in await answered_by_all(server, workers)] == [
        (0, "gradient", ["gradient"])
    ] * 2
    second = (await server.show(run_id)).tensors
    assert second["params"] == first["params"]
    for name, values in (await tensors_of(server, run_id, "gradient")).items():
        np.testing.assert_allclose(values, mean[name], rtol=1e-6)

    directions = await answered_by_all(server, workers)
    assert [asked(each) for each in directions] == [(1, "direction", ["delta"])] * 2
    assert all(each["tensors"] == second for each in directions)
    third = (await server.show(run_id)).tensors
    assert third["gradient"] == second["gradient"]
    for name, values in (await tensors_of(server, run_id, "params")).items():
        np.testing.assert_allclose(values, start[name] + 0.5 * mean[name], rtol=1e-6)

    assert [asked(each)[:2] for each in await answered_by_all(server, workers)] == [(2, "gradient")] * 2


async def test_a_round_that_is_abandoned_between_the_phases_repeats_its_own(start_server):
    server = await start_server(performing=False)
    run_id, cohort = await server.a_round(algorithm="done", rounds=4)
    workers = [worker for worker, _ in cohort]
    await answered_by_all(server, workers)
    given_up = [await worker.assignment() for worker in workers]
    for worker, assignment in zip(workers, given_up, strict=True):
        url = f"/v1/assignments/{assignment['assignment_id']}/decline"
        assert (await worker.http.post(url, json={"reason": "battery"})).status_code == 204
    again = await answered_by_all(server, workers)

    assert [each["status"] for each in await server.rounds(run_id)][:3] == [
        "committed",
        "abandoned",
        "committed",
    ]
    for before, after in zip(given_up, again, strict=True):
        assert asked(after) == asked(before) == (1, "direction", ["delta"])
        assert after["round"] == before["round"] + 1
        assert after["tensors"] == before["tensors"]


async def test_an_update_of_the_other_phase_is_refused(start_server):
    server = await start_server(performing=False)
    _, [(worker, assignment), _] = await server.a_round(algorithm="done")
    other = assignment | {"bundles": ["delta"], "encodings": {"delta": "f32"}}
    answer = await worker.declare(assignment, server.an_update(other).header)
    assert answer.json()["code"] == "bundle-mismatch"


async def test_other_workers_may_find_the_direction_than_found_the_gradient(start_server):
    server = await start_server(performing=False)
    run = await server.a_run(algorithm="done", rounds=4, cohort_size=1, quorum=1, min_workers=3)
    workers = [await server.enrol(f"worker-{number}") for number in range(3)]
    for worker in workers:
        await worker.ask()
    invited = []
    for version in range(4):
        answers = [(each, await each.ask()) for each in workers]
        [(worker, assignment)] = [(each, found.json()) for each, found in answers if found.status_code == 200]
        assert assignment["version"] == version
        assert ("gradient" in assignment["tensors"]) == (version > 0)
        invited.append(assignment["slot"])
        await worker.send(assignment)
        await server.aggregate_now()
    assert len(set(invited)) > 1
    assert (await server.show(run.run_id)).status == "finished"


async def test_a_gradient_that_comes_when_the_direction_is_asked_for_is_too_late(start_server):
    server = await start_server(performing=False)
    run = await server.a_run(algorithm="done", rounds=4, cohort_size=2, quorum=1, min_workers=2)
    first, late = [await server.enrol(f"worker-{number}") for number in range(2)]
    for worker in (first, late):
        await worker.ask()
    assigned = await late.assignment()
    await first.send(await first.assignment())
    assert (await server.operator.post(f"/v1/runs/{run.run_id}/rounds/1/aggregate")).status_code == 202
    await server.aggregate_now()
    answer = await late.declare(assigned, server.an_update(assigned).header)
    assert answer.json()["code"] == "round-closed"
    assert asked(await late.assignment()) == (1, "direction", ["delta"])
