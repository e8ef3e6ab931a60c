# SPDX-License-Identifier: Apache-2.0
"""What a server step keeps for itself, and what it is told of the round."""

import asyncio

import numpy as np
import pytest

from protocol.codec import decode_message
from tests.ps_service.conftest import MODEL, values_like

PLAIN = {
    "fedlion": {},
    "fedcm": {},
    "curvature-weighted": {},
    "fedadam": {
        "momentum_decay": 0.0,
        "second_moment_decay": 1 - 1e-9,
        "epsilon": 1e6,
        "server_learning_rate": 2e6,
    },
    "fedavgm": {"momentum_decay": 0.0},
}
"""Numbers with which a synchronous version moves by the mean delta: v stays ε², so √v + ε is 2ε."""


async def first_version(server, run_id):
    async with asyncio.timeout(10):
        while (run := await server.show(run_id)).version == 0:
            await asyncio.sleep(0.01)
    return run


async def test_the_moments_of_a_server_step_are_named_to_nobody_who_trains_or_evaluates(server):
    run_id, cohort = await server.a_round(algorithm="fedadam")
    evaluator = await server.enrol("judge", role="evaluator")
    for worker, assignment in cohort:
        await worker.send(assignment)
    run = await first_version(server, run_id)
    params = {"params": run.tensors["params"]}

    assert set(run.tensors) == {"params", "momentum", "second_moment"}
    assert (await evaluator.assignment())["tensors"] == params
    for worker, _ in cohort:
        assert (await worker.assignment())["tensors"] == params


async def test_a_step_knows_how_many_workers_a_part_of_them_was_chosen_from(server):
    """SCAFFOLD with 2 of 4: c moves by (2/4) of the mean, here of two equal changes."""
    run = await server.a_run(algorithm="scaffold", cohort_size=2, min_workers=4)
    workers = [await server.enrol(f"worker-{number}") for number in range(4)]
    for worker in workers:
        await worker.ask()
    for worker in workers:
        answer = await worker.ask()
        if answer.status_code == 200:
            await worker.send(answer.json())
    run = await first_version(server, run.run_id)

    answer = await server.operator.get(f"/v1/runs/{run.run_id}/tensors/{run.tensors['control']}")
    control = decode_message(answer.content)["control"]
    for name, change in values_like(MODEL, 0.005).items():
        np.testing.assert_allclose(control[name], change / 2, rtol=1e-6)


@pytest.mark.parametrize("algorithm", ["fedlion", "fedcm", "fedadam", "fedavgm"])
async def test_in_an_asynchronous_run_a_version_of_one_of_two_updates_goes_half_the_way(server, algorithm):
    run = await server.a_run(
        algorithm=algorithm, cohort_size=1, min_workers=2, asynchronous={}, hyperparameters=PLAIN[algorithm]
    )
    workers = [await server.enrol(f"worker-{number}") for number in range(2)]
    for worker in workers:
        await worker.ask()
    assignment = await workers[0].assignment()
    await workers[0].send(assignment)
    run = await first_version(server, run.run_id)

    answer = await server.operator.get(f"/v1/runs/{run.run_id}/tensors/{run.tensors['params']}")
    params = decode_message(answer.content)["params"]
    for name, sent in values_like(MODEL, 0.005).items():
        np.testing.assert_allclose(params[name], values_like(MODEL, 0.1)[name] + sent / 2, rtol=1e-5)
