# SPDX-License-Identifier: Apache-2.0
"""What a run forgets and when its bytes go; and that nothing goes which anything refers to."""

import asyncio
from dataclasses import replace

import pytest

from protocol.codec import digest_of
from protocol.errors import NotFound
from protocol.messages import MetricsReport
from ps_service.effects import perform_effects
from ps_service.housekeeping import SWEEP_EVERY_S
from ps_service.storage import condemned_records
from ps_service.storage.files import FileBlobs


def stored(server):
    return set(server.stores.blobs.digests())


async def after_rounds(server, count, **spec):
    """A run of so many committed rounds whose next round is open: its id and its workers."""
    run_id, cohort = await server.a_round(2, rounds=100, **spec)
    workers = [worker for worker, _ in cohort]
    for _ in range(count):
        await one_round(server, workers)
    return run_id, workers


async def one_round(server, workers):
    """Give the digests of its updates."""
    assignments = [await worker.assignment(wait_s=5) for worker in workers]
    digests = set()
    for worker, assignment in zip(workers, assignments, strict=True):
        update = server.an_update(assignment, seed=assignment["round"])
        digests.add((await worker.send(assignment, update)).digest)
    await server.aggregate_now()
    return digests


async def versions_of(server, run_id):
    return (await server.operator.get(f"/v1/runs/{run_id}/versions")).json()["versions"]


async def kept(server, run_id):
    return [each["version"] for each in await versions_of(server, run_id) if not each["collected"]]


async def test_the_updates_of_a_round_go_when_it_has_ended(server):
    run_id, workers = await after_rounds(server, 1)
    digests = await one_round(server, workers)
    assert not digests & stored(server)
    named = {digest for each in await versions_of(server, run_id) for digest in each["tensors"].values()}
    assert stored(server) == named


async def test_updates_are_kept_for_as_many_rounds_as_the_run_asks_for(server):
    _, workers = await after_rounds(server, 0, retention={"update_rounds": 2})
    first, second, third = [await one_round(server, workers) for _ in range(3)]
    assert not first & stored(server)
    assert second | third <= stored(server)


async def test_versions_beyond_the_retention_keep_their_place_in_history_and_lose_their_tensors(server):
    run_id, workers = await after_rounds(server, 4, retention={"last": 2})
    assert [each["version"] for each in await versions_of(server, run_id)] == [0, 1, 2, 3, 4]
    assert await kept(server, run_id) == [3, 4]
    gone = (await versions_of(server, run_id))[1]["tensors"]["params"]
    assert gone not in stored(server)
    answer = await workers[0].http.get(f"/v1/runs/{run_id}/tensors/{gone}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")
    assert len(await server.rounds(run_id)) == 5


async def test_the_best_version_outlives_the_newest(server):
    run_id, workers = await after_rounds(server, 1, retention={"last": 1, "best": {"metric": "accuracy"}})
    judge = await server.enrol("judge", role="evaluator")
    report = MetricsReport(version=1, num_examples=10, metrics={"accuracy": 0.9})
    answer = await judge.http.post(f"/v1/runs/{run_id}/metrics", json=report.model_dump())
    assert answer.status_code == 204
    for _ in range(3):
        await one_round(server, workers)
    assert await kept(server, run_id) == [1, 4]


async def test_an_evaluator_is_offered_only_versions_that_are_kept(server):
    await after_rounds(server, 4, retention={"last": 2})
    judge = await server.enrol("judge", role="evaluator")
    assert (await judge.assignment())["version"] == 3


async def test_what_another_run_refers_to_stays(server):
    first, _ = await after_rounds(server, 3, retention={"last": 1})
    spec = await server.a_spec()
    second = await server.a_run()
    assert 0 not in await kept(server, first)
    await server.service.housekeeping.tidy(first)
    assert spec["params_digest"] == second.tensors["params"]
    assert spec["params_digest"] in stored(server)


async def test_bytes_that_nobody_wanted_go_at_the_second_sweep(start_server):
    server = await start_server(performing=False)
    orphan = await server.store_params(value=0.3)
    await server.service.housekeeping.look()
    assert orphan in stored(server)
    server.clock.advance(round(SWEEP_EVERY_S * 1000))
    await server.service.housekeeping.look()
    assert orphan not in stored(server)
    answer = await server.operator.post("/v1/runs", json=await server.a_spec() | {"params_digest": orphan})
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown-tensors")


async def test_bytes_that_are_stored_again_between_two_sweeps_stay(start_server):
    server = await start_server(performing=False)
    digest = await server.store_params(value=0.3)
    await server.service.housekeeping.look()
    assert await server.store_params(value=0.3) == digest
    server.clock.advance(round(SWEEP_EVERY_S * 1000))
    await server.service.housekeeping.look()
    assert digest in stored(server)


async def test_a_run_whose_params_go_in_the_moment_it_is_created_is_refused(start_server):
    server = await start_server(performing=False, on_disk=True)
    spec = await server.a_spec()
    housekeeping = server.service.housekeeping
    async with server.stores.records.write():
        collecting = asyncio.create_task(housekeeping._delete({spec["params_digest"]}))
        await asyncio.sleep(0)
        creating = asyncio.create_task(server.operator.post("/v1/runs", json=spec))
        while len(server.stores.records._writing._waiters or ()) < 2:
            await asyncio.sleep(0)
    assert await collecting == 1
    answer = await creating
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown-tensors")
    assert (await server.operator.get("/v1/runs")).json()["runs"] == []


async def test_an_update_whose_bytes_go_before_its_receipt_is_asked_for_again(start_server):
    server = await start_server(on_disk=True)
    _, [(worker, assignment), _] = await server.a_round()
    update = server.an_update(assignment)
    url = (await worker.declare(assignment, update.header)).json()["upload_url"]
    digest = digest_of([update.body])
    async with server.stores.records.write() as connection:  # the body is sealed; what follows waits for this
        sending = asyncio.create_task(worker.put(url, update.body))
        while not server.stores.records._writing._waiters:
            await asyncio.sleep(0.001)
        await condemned_records.condemn(connection, [digest], 1, 0)
        server.stores.blobs.delete(digest)
        await condemned_records.have_gone(connection, [digest], 1, 1)
    answer = await sending
    assert (answer.status_code, answer.json()["code"]) == (408, "upload-interrupted")
    assert (await worker.send(assignment, update)).digest == digest


@pytest.mark.parametrize("restarts", [False, True])
async def test_what_a_crash_left_to_be_tidied_is_tidied_by_the_next_start(start_server, restarts):
    server = await start_server(performing=False, on_disk=True)
    run_id, workers = await server.a_round(2, rounds=100, retention={"last": 1})
    for worker, assignment in workers:
        await worker.send(assignment)
    assert await perform_effects(server.runner)  # and killed before it could tidy
    assert await kept(server, run_id) == [0, 1]
    if restarts:
        server = await start_server(performing=False, on_disk=True)
    await server.service.housekeeping.look()
    assert await kept(server, run_id) == [1]


class Hooked(FileBlobs):
    """A store that has something done, once, when it is first asked to delete."""

    then = None

    def delete(self, digest):
        then, self.then = self.then, None
        if then is not None:
            then()
        super().delete(digest)


async def test_a_round_that_ends_while_its_run_is_tidied_is_tidied_too(start_server, tmp_path):
    server = await start_server(performing=False)
    runner = server.runner
    runner.stores = replace(runner.stores, blobs=Hooked(tmp_path))
    run_id, workers = await server.a_round(2, rounds=100)

    async def hold_a_round():
        digests = set()
        for worker, _ in workers:
            assignment = await worker.assignment(wait_s=5)
            digests.add((await worker.send(assignment, server.an_update(assignment))).digest)
        assert await perform_effects(runner)
        return digests

    await hold_a_round()
    runner.stores.blobs.then = lambda: runner.untidy.add(run_id)  # as the end of a round does
    tidied = []
    housekeeping = server.service.housekeeping
    tidy = housekeeping.tidy

    async def counted(run_id):
        tidied.append(run_id)
        await tidy(run_id)

    housekeeping.tidy = counted
    await housekeeping.look()
    assert tidied == [run_id, run_id]
    assert not runner.untidy


async def test_a_run_that_cannot_be_tidied_stands_in_nobody_s_way(start_server):
    server = await start_server(performing=False)
    orphan = await server.store_params(value=0.3)
    housekeeping = server.service.housekeeping
    await housekeeping.look()
    _, workers = await server.a_round(2, rounds=100)
    for worker, assignment in workers:
        await worker.send(assignment)
    assert await perform_effects(server.runner)
    server.runner.untidy.add("run-that-is-not")
    server.clock.advance(round(SWEEP_EVERY_S * 1000))
    for _ in range(2):
        with pytest.raises(NotFound, match="run-that-is-not"):
            await housekeeping.look()
        assert server.runner.untidy == {"run-that-is-not"}
    assert orphan not in stored(server)


async def test_a_stranger_s_files_are_no_tensor_messages(start_server, tmp_path):
    server = await start_server(performing=False)
    digest = await server.store_params(value=0.3)
    (tmp_path / "blobs" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "blobs" / "lost+found").mkdir()
    copy = tmp_path / "blobs" / digest[:2] / f"{digest}.bak"
    copy.write_bytes(b"x")
    assert stored(server) == {digest}
    for _ in range(2):
        await server.service.housekeeping.look()
        server.clock.advance(round(SWEEP_EVERY_S * 1000))
    assert stored(server) == set()
    assert copy.exists()
