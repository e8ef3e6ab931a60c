# SPDX-License-Identifier: Apache-2.0
"""Two servers on one PostgreSQL and one S3: what one is told, the other knows."""

import asyncio
import secrets
import threading

import pytest

from protocol.assertions import Purpose, public_key_of, thumbprint
from protocol.codec import MEDIA_TYPE
from ps_service.effects import perform_effects
from ps_service.fellows import LOOK_EVERY_S
from ps_service.leases import Leases
from ps_service.storage import condemned_records, credential_records, key_records
from ps_service.storage.objects import ObjectBlobs
from tests.ps_service.conftest import ManualClock, key_of
from tests.ps_service.test_resumption import offset, send_part


@pytest.fixture
async def start_two(new_database, s3, start_server, tmp_path):
    """Start both; options as `start_server`'s, which ends before its database does."""

    async def start(kind=ObjectBlobs, **options):
        url, clock, prefix = new_database(), ManualClock(), secrets.token_hex(6)
        servers = []
        for name in ("one", "other"):
            directory = tmp_path / name
            directory.mkdir()
            blobs = kind(s3.objects(prefix), directory / "spool")
            started = await start_server(where=url, clock=clock, directory=directory, blobs=blobs, **options)
            servers.append(started)
        return servers

    return start


async def test_a_worker_that_waits_at_one_hears_at_once_of_what_begins_at_the_other(start_two):
    one, other = await start_two()
    worker = await one.enrol("worker")
    waiting = asyncio.create_task(worker.assignment(wait_s=30))
    await one.someone_listens(f"worker/{worker.worker_id}")
    async with asyncio.timeout(5):
        run = await other.a_run(cohort_size=1)
        assert (await waiting)["run_id"] == run.run_id


async def test_a_round_is_held_by_whichever_server_each_is_asked(start_two):
    one, other = await start_two(performing=False)
    run_id, cohort = await one.a_round()
    for worker, assignment in cohort:
        await worker.moved_to(other).send(assignment)
    await one.aggregate_now()
    assert (await other.show(run_id)).version == 1


async def test_a_body_that_pauses_at_one_goes_on_at_the_other(start_two):
    one, other = await start_two()
    _, [(worker, assignment), _] = await one.a_round()
    update = one.an_update(assignment)
    url = (await worker.declare(assignment, update.header)).json()["upload_url"]
    await send_part(worker, url, 0, update.body[:150])
    worker.move_to(other)
    assert await offset(worker, url) == (150, "?0")
    answer = await send_part(worker, url, 150, update.body[150:], Upload_Complete="?1")
    assert answer.status_code == 200, answer.text


async def test_both_take_the_same_body_at_once_and_it_counts_once(start_two):
    one, other = await start_two(performing=False)
    run_id, cohort = await one.a_round()
    worker, assignment = cohort[0]
    update = one.an_update(assignment)
    url = (await worker.declare(assignment, update.header)).json()["upload_url"]
    here = asyncio.create_task(worker.put(url, update.body))
    await asyncio.sleep(0)  # it is under way
    there = worker.moved_to(other).put(url, update.body)
    answers = await asyncio.gather(here, there)
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()
    assert (await one.rounds(run_id))[0]["admitted"] == 1


async def test_who_is_revoked_at_one_is_refused_at_the_other(start_two):
    one, other = await start_two()
    worker = await one.enrol("worker")
    await one.operator.delete(f"/v1/workers/{worker.worker_id}")
    worker.move_to(other)
    assert (await worker.ask()).status_code in (401, 403)


async def test_an_assertion_is_good_once_whoever_is_asked(start_two):
    one, other = await start_two()
    worker = await one.enrol("worker")
    assertion = {"assertion": worker.sign()}
    path = f"/v1/workers/{worker.worker_id}/token"
    assert (await one.client().post(path, json=assertion)).status_code == 200
    assert (await other.client().post(path, json=assertion)).status_code == 401


async def test_what_each_has_sent_is_written_down_of_the_round(start_two):
    one, other = await start_two(performing=False)
    run_id, cohort = await one.a_round()
    for (worker, assignment), server in zip(cohort, (one, other), strict=True):
        worker.move_to(server)
        path = f"/v1/runs/{run_id}/tensors/{assignment['tensors']['params']}"
        size_bytes = len((await worker.http.get(path)).content)
        await server.service.fellows.look()
    assert (await one.rounds(run_id))[0]["bytes_down"] == 2 * size_bytes


async def test_servers_count_one_another_and_share_the_rates(start_two):
    one, other = await start_two(performing=False, requests_per_s_per_worker=8)
    worker = await one.enrol("worker")
    for server in (one, other, one):
        assert await server.service.fellows.look() == LOOK_EVERY_S
    assert (one.service.fellows.count, other.service.fellows.count) == (2, 2)
    answers = [await worker.ask() for _ in range(60)]
    assert [answer.status_code for answer in answers].count(204) == 8 * 10 // 2
    await other.service.fellows.leave()
    await one.service.fellows.look()
    assert one.service.fellows.count == 1


async def test_access_tokens_are_given_while_others_have_the_lock(start_two):
    one, other = await start_two(performing=False)
    worker = await one.enrol("worker")
    async with other.stores.records.write(), asyncio.timeout(5):
        assert await worker.token()


async def test_a_token_that_is_had_while_its_key_changes_is_of_no_use(start_two):
    one, other = await start_two(performing=False)
    worker = await one.enrol("worker")
    await worker.be_ready()
    key = public_key_of(key_of("another"))
    use = thumbprint(key)
    rotation = {
        "public_key": key,
        "proof": worker.sign(Purpose.ROTATE, private_key=key_of("another")),
        "consent": worker.sign(Purpose.ROTATE, use=use),
    }
    async with one.stores.records.write_aside() as connection:
        await credential_records.hold_worker(connection, worker.worker_id)
        changing = asyncio.create_task(
            worker.moved_to(other).http.post(f"/v1/workers/{worker.worker_id}/key", json=rotation)
        )
        done, _ = await asyncio.wait([changing], timeout=0.5)
        assert not done, "the worker is held"
        assert await key_records.add_access_token(
            connection, "0" * 64, worker.worker_id, "a" * 16, 2_000_000, 2_000_000
        )
    answer = await changing
    assert answer.status_code == 204, answer.text
    async with one.stores.records.read() as connection:
        assert await credential_records.worker_by_token(connection, "0" * 64, one.clock.now_ms()) is None


class SlowToDelete(ObjectBlobs):
    """Deletes nothing before it is told to."""

    def __init__(self, objects, spool):
        super().__init__(objects, spool)
        self.asked, self.goes_on = threading.Event(), threading.Event()

    def delete(self, digest):
        self.asked.set()
        assert self.goes_on.wait(30)
        super().delete(digest)


async def test_what_is_about_to_be_deleted_counts_as_gone_everywhere_and_nobody_waits_for_it(start_two):
    one, other = await start_two(performing=False, kind=SlowToDelete)
    digest, spec = await one.store_params(), await other.a_spec()
    await one.service.housekeeping.sweep()
    sweeping = asyncio.create_task(one.service.housekeeping.sweep())
    await asyncio.to_thread(one.stores.blobs.asked.wait, 30)
    assert spec["params_digest"] == digest
    async with asyncio.timeout(5):
        refused = await other.operator.post("/v1/runs", json=spec)
    assert (refused.status_code, refused.json()["code"]) == (422, "unknown-tensors")
    sweeping.cancel()  # as when the server stops: it waits for what is under way
    one.stores.blobs.goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await sweeping
    assert other.stores.blobs.size(digest) is None


async def test_what_a_server_that_died_had_condemned_is_deleted_by_another(start_two):
    one, other = await start_two(performing=False)
    digest = await one.store_params()
    async with one.stores.records.write() as connection:
        await condemned_records.condemn(connection, [digest], 0, 0)
    await other.service.housekeeping.look()
    assert one.stores.blobs.size(digest) is None
    await one.store_params()
    assert (await one.operator.post("/v1/runs", json=await one.a_spec())).status_code == 201


async def test_of_two_that_would_delete_the_same_one_does(start_two):
    """The other leaves it alone, also when its claim is over and somebody has stored the bytes again."""
    one, other = await start_two(performing=False, kind=SlowToDelete)
    digest = await one.store_params()
    deleting = asyncio.create_task(one.service.housekeeping._delete([digest]))
    await asyncio.to_thread(one.stores.blobs.asked.wait, 30)
    assert await other.service.housekeeping._delete([digest]) == 0
    assert not other.stores.blobs.asked.is_set()
    refused = await other.operator.put(
        f"/v1/tensors/{digest}", content=b"x", headers={"Content-Type": MEDIA_TYPE}
    )
    assert (refused.status_code, refused.json()["code"]) == (503, "not-ready")
    one.stores.blobs.goes_on.set()
    assert await deleting == 1
    await other.store_params()
    assert (await other.operator.post("/v1/runs", json=await other.a_spec())).status_code == 201


async def test_an_assertion_that_is_sent_many_times_at_once_is_good_once(start_two):
    one, other = await start_two(performing=False)
    worker = await one.enrol("worker")
    path, body = f"/v1/workers/{worker.worker_id}/token", {"assertion": worker.sign()}
    answers = await asyncio.gather(*(each.client().post(path, json=body) for each in (one, other) * 4))
    assert sorted(answer.status_code for answer in answers) == [200] + [401] * 7


async def test_a_worker_that_both_find_lost_is_lost_once(start_two):
    one, other = await start_two(performing=False, lost_after_s=10)
    run_id, _ = await one.a_round(quorum=2)
    for _ in range(4):
        one.clock.advance(4_000)
        await asyncio.gather(*(server.service.presence.look() for server in (one, other)))
    assert (await one.rounds(run_id))[0]["lost"] == 2


# --- effects --------------------------------------------------------------------------------------


async def closed_round(one):
    run_id, cohort = await one.a_round()
    for worker, assignment in cohort:
        await worker.send(assignment)
    return run_id


def aggregations(server):
    return sum(bucket.get() for bucket in server.service.meters.aggregation_seconds._buckets)


async def test_of_two_that_claim_an_effect_at_once_one_performs_it(start_two):
    one, other = await start_two(performing=False)
    run_id = await closed_round(one)
    done = await asyncio.gather(
        perform_effects(one.runner),
        perform_effects(other.runner),
    )
    assert sorted(done) == [False, True]
    assert sorted(aggregations(server) for server in (one, other)) == [0, 1]
    assert (await one.show(run_id)).version == 1
    assert await perform_effects(one.runner), "nothing is left"
    assert await perform_effects(other.runner)


async def test_the_lease_of_one_that_died_runs_out_and_the_other_takes_over(start_two):
    one, other = await start_two(performing=False)
    run_id = await closed_round(one)
    one.runner.leases = Leases(one.stores.records, lease_s=1.0)
    assert await one.runner.leases.take(1)  # and it dies
    assert not await perform_effects(other.runner)
    async with asyncio.timeout(10):
        while not await perform_effects(other.runner):
            await asyncio.sleep(0.1)
    assert (await one.show(run_id)).version == 1


async def test_a_lease_that_is_kept_does_not_run_out(start_two):
    one, other = await start_two(performing=False)
    await closed_round(one)
    one.runner.leases = Leases(one.stores.records, lease_s=0.6)
    assert await one.runner.leases.take(1)
    async with one.runner.leases.kept(1):
        for _ in range(4):
            await asyncio.sleep(0.4)
            assert not await other.runner.leases.take(1)
    assert not await other.runner.leases.take(1)
    await one.runner.leases.close()
    assert await other.runner.leases.take(1)


async def test_what_fails_at_one_is_done_by_the_other(start_two):
    one, other = await start_two(performing=False)
    run_id = await closed_round(one)
    assert await one.runner.leases.take(1)
    with pytest.raises(OSError, match="no space"):
        async with one.runner.leases.kept(1):
            raise OSError("no space")
    assert await perform_effects(other.runner)
    assert (await one.show(run_id)).version == 1
