# SPDX-License-Identifier: Apache-2.0
"""Asynchronous runs for tests: a cohort that trains, and what its server holds."""

from protocol.codec import decode_message


async def a_cohort(server, workers: int, *, cohort_size=2, quorum=1, rounds=100, **asynchronous):
    """An asynchronous run in whose first round everybody trains: its id, and the workers in slot order."""
    spec = asynchronous.pop("spec", {})
    run = await server.a_run(
        cohort_size=cohort_size,
        quorum=quorum,
        rounds=rounds,
        min_workers=workers,
        asynchronous=asynchronous,
        **spec,
    )
    cohort = [await server.enrol(f"worker-{number}") for number in range(workers)]
    for worker in cohort:
        await worker.ask()
    return run.run_id, cohort


async def state_of(server, run_id: str, version: int | None = None) -> dict:
    """{bundle: {tensor: values}} of a version; the newest unless said."""
    versions = (await server.operator.get(f"/v1/runs/{run_id}/versions")).json()["versions"]
    state = {}
    for digest in versions[-1 if version is None else version]["tensors"].values():
        answer = await server.operator.get(f"/v1/runs/{run_id}/tensors/{digest}")
        assert answer.status_code == 200, answer.text
        state |= decode_message(answer.content)
    return state


async def collected(server, run_id: str) -> set[int]:
    versions = (await server.operator.get(f"/v1/runs/{run_id}/versions")).json()["versions"]
    return {version["version"] for version in versions if version["collected"]}
