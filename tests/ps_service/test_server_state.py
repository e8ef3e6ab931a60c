# SPDX-License-Identifier: Apache-2.0
"""What only a server step needs is part of every version and of no assignment."""

import asyncio


async def test_the_moments_of_a_server_step_are_named_to_nobody_who_trains_or_evaluates(server):
    run_id, cohort = await server.a_round(algorithm="fedadam")
    evaluator = await server.enrol("judge", role="evaluator")
    for worker, assignment in cohort:
        await worker.send(assignment)
    async with asyncio.timeout(10):
        while (run := await server.show(run_id)).version == 0:
            await asyncio.sleep(0.01)
    params = {"params": run.tensors["params"]}

    assert set(run.tensors) == {"params", "momentum", "second_moment"}
    assert (await evaluator.assignment())["tensors"] == params
    for worker, _ in cohort:
        assert (await worker.assignment())["tensors"] == params
