# SPDX-License-Identifier: Apache-2.0
"""What a worker claims, how large a model is and what a run takes on disk have limits that are settings."""

import pytest

from protocol.codec import MEDIA_TYPE, digest_of


def code_of(answer):
    return answer.status_code, answer.json().get("code")


async def test_who_claims_too_many_examples_is_refused_and_the_operator_sees_it(start_server):
    server = await start_server(max_num_examples=100)
    run_id, [(worker, assignment), _] = await server.a_round()
    update = server.an_update(assignment)
    answer = await worker.declare(assignment, update.declared(num_examples=101))
    assert code_of(answer) == (422, "too-many-examples")
    standings = (await server.operator.get(f"/v1/runs/{run_id}/rounds/1/workers")).json()["workers"]
    assert [(each["standing"], each["reason"]) for each in standings] == [
        ("refused", "too-many-examples"),
        ("asked", None),
    ]
    assert (await worker.declare(assignment, update.declared(num_examples=100))).status_code == 201


async def test_an_evaluator_claims_no_more_either(start_server):
    server = await start_server(max_num_examples=100)
    run = await server.a_run()
    evaluator = await server.enrol("evaluator", role="evaluator")
    for number, status in ((101, 422), (100, 204)):
        answer = await evaluator.http.post(
            f"/v1/runs/{run.run_id}/metrics",
            json={"version": 0, "num_examples": number, "metrics": {"loss": 1.0}},
        )
        assert answer.status_code == status, answer.text


MODEL = {"a": (4, 5), "b": (5,), "nothing": (0, 7)}  # three tensors, 100 bytes
TOO_LARGE = [{"max_model_tensors": 2}, {"max_model_bytes": 99}]


@pytest.mark.parametrize("settings", TOO_LARGE, ids=["tensors", "bytes"])
async def test_a_model_beyond_the_limit_is_neither_stored_nor_trained(start_server, message, settings):
    generous = await start_server(on_disk=True, max_model_tensors=3, max_model_bytes=100)
    spec = await generous.a_spec(model=MODEL)
    assert (await generous.operator.post("/v1/runs", json=spec)).status_code == 201
    server = await start_server(on_disk=True, **settings)
    assert code_of(await server.operator.post("/v1/runs", json=spec)) == (413, "model-too-large")

    body = message("state", {"params": {name: [[0.5] * 5] * 4 for name in "xyz"}})
    digest = digest_of([body])
    headers = {"Content-Type": MEDIA_TYPE}
    answer = await server.operator.put(f"/v1/tensors/{digest}", content=body, headers=headers)
    assert code_of(answer) == (413, "model-too-large")
    assert (await server.operator.head(f"/v1/tensors/{digest}")).status_code == 404


async def declared(server, worker, assignment, **changes):
    return await worker.declare(assignment, server.an_update(assignment, **changes).header)


async def test_a_run_s_updates_fit_its_disk_and_the_next_round_has_room_again(start_server):
    size = 600  # an update of the small model has about 500 bytes
    server = await start_server(max_run_disk_bytes=2 * size, performing=False)
    run_id, cohort = await server.a_round(3, quorum=2, deadline_s=60)
    assert all(len(server.an_update(assignment).body) <= size for _, assignment in cohort)
    [(first, its), (second, others), (third, last)] = cohort
    await first.send(its)
    assert (await declared(server, second, others)).status_code == 201
    refused = await declared(server, third, last)
    assert code_of(refused) == (507, "run-disk-full")
    assert refused.headers["retry-after"] == "10"
    assert (await declared(server, second, others)).status_code == 201, "the same again takes no more"
    server.clock.advance(2_000)
    assert code_of(await declared(server, third, last)) == (507, "run-disk-full")
    standings = (await server.operator.get(f"/v1/runs/{run_id}/rounds/1/workers")).json()["workers"]
    assert [each["standing"] for each in standings] == ["received", "asked", "asked"]

    await second.send(others)
    await close_and_collect(server, run_id)
    server.clock.advance(2_000)
    for worker, _ in cohort[:2]:
        await worker.ask()
    assert (await declared(server, first, await first.assignment())).status_code == 201


async def close_and_collect(server, run_id):
    answer = await server.operator.post(f"/v1/runs/{run_id}/rounds/1/aggregate")
    assert answer.status_code == 202, answer.text
    await server.aggregate_now()


async def test_what_was_replaced_counts_until_the_records_are_asked(start_server):
    """The reckoning may be too high, never too low; where it says that a run is full, it is made anew."""
    server = await start_server(max_run_disk_bytes=1_200)
    _, [(worker, assignment), (other, others)] = await server.a_round()
    for seed in range(10):
        server.clock.advance(1_000)
        assert (await declared(server, worker, assignment, seed=seed)).status_code == 201
    server.clock.advance(1_000)
    assert (await declared(server, other, others)).status_code == 201
