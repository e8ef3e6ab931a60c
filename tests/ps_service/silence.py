# SPDX-License-Identifier: Apache-2.0
"""Time in which some workers are heard of and others are not."""

LOST_AFTER_S = 90
STEP_S = 30
"""From one look to the next: often enough that the server itself was always there."""


async def heartbeat(worker):
    return await worker.http.post(f"/v1/workers/{worker.worker_id}/heartbeat", json={})


async def pass_time(server, seconds, heard=()):
    """Let so much time pass; these workers send heartbeats, and of all others nothing is heard."""
    for _ in range(seconds // STEP_S):
        server.clock.advance(STEP_S * 1000)
        for worker in heard:
            assert (await heartbeat(worker)).status_code == 204
        await server.service.presence.look()


async def lose(server, *lost, heard=()):
    """Nothing is heard of these workers until they are lost."""
    await pass_time(server, LOST_AFTER_S, heard)
    names = await who_is_lost(server)
    assert set(names) >= {worker.worker_id for worker in lost}


async def who_is_lost(server):
    """The ids of the workers that are lost now."""
    workers = (await server.operator.get("/v1/workers")).json()["workers"]
    return [row["worker_id"] for row in workers if row["lost_ms"] is not None]


async def standings(server, run_id, number=1):
    """[(standing, reason)] of a round's workers, by slot."""
    answer = await server.operator.get(f"/v1/runs/{run_id}/rounds/{number}/workers")
    assert answer.status_code == 200, answer.text
    return [(row["standing"], row["reason"]) for row in answer.json()["workers"]]
