# SPDX-License-Identifier: Apache-2.0
"""Tensors that pass the server by: workers exchange them with a real S3 server, by signed addresses."""

import asyncio
import hashlib
from dataclasses import dataclass, field

import httpx
import numpy as np
import pytest
from botocore.credentials import Credentials
from botocore.exceptions import CredentialRetrievalError

from protocol.errors import NotFinite, StorageUnavailable
from protocol.messages import Receipt
from ps_service import late_checks
from ps_service.effects import perform_effects
from ps_service.storage import effect_records, s3_signing, update_records
from ps_service.storage.addresses import Addresses
from ps_service.storage.files import FileBlobs
from ps_service.storage.object_access import ObjectAccess, blob_key
from ps_service.storage.objects import ObjectBlobs
from ps_service.storage.s3_signing import S3Signer, checksum
from tests.ps_service.conftest import MODEL, Update, values_like
from tests.s3 import ACCESS_KEY, SECRET_KEY


def signer(secret_key=SECRET_KEY, public_url=""):
    return S3Signer(public_url, lambda: Credentials(ACCESS_KEY, secret_key))


@pytest.fixture
def objects(s3, tmp_path):
    """A place in a real S3 server."""
    return s3.objects(f"{tmp_path.parent.name}/{tmp_path.name}")


@pytest.fixture
def start_with(start_server, objects, tmp_path):
    """Starts a server whose store is signed for like this; None: as a store that compares no digests."""

    async def start(by, put=s3_signing.put_by_http, **settings):
        blobs = ObjectBlobs(objects, tmp_path / "spool", Addresses(objects, "s3", by, put=put))
        return await start_server(performing=False, blobs=blobs, **settings)

    return start


@pytest.fixture
async def server(start_with):
    return await start_with(signer())


@pytest.fixture
async def trusting(start_with):
    """A server on a store that does not compare what it is sent with a digest."""
    return await start_with(None)


async def put(offer, body, **headers):
    """As a worker puts a body: with what the offer says, and without any credential."""
    headers = offer["put"]["headers"] | {"Content-Length": str(len(body))} | headers
    async with httpx.AsyncClient() as client:
        return await client.put(offer["put"]["url"], content=body, headers=headers)


async def offered(worker, assignment, update):
    answer = await worker.declare(assignment, update.header)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def stored(worker, offer):
    return await worker.http.post(f"{offer['upload_url']}/stored")


async def two_servers(objects, tmp_path, start_server, new_database):
    """Two servers that share a database and a store."""
    where, servers = new_database(), []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        blobs = ObjectBlobs(objects, tmp_path / name / "spool", Addresses(objects, "s3", signer()))
        servers.append(
            await start_server(performing=False, directory=tmp_path / name, where=where, blobs=blobs)
        )
    return servers


async def sent(worker, assignment, update):
    """Put an update into the store, and tell the server."""
    offer = await offered(worker, assignment, update)
    assert (await put(offer, update.body)).status_code == 200
    return await stored(worker, offer)


async def receipt(worker, assignment):
    answer = await worker.http.get(f"/v1/assignments/{assignment['assignment_id']}/update")
    return Receipt.model_validate(answer.json())


def nan_update(server, assignment):
    return server.an_update(assignment, bundles={"delta": {n: np.full(s, np.nan) for n, s in MODEL.items()}})


async def final_tensors(server, presigned):
    """Two rounds of two workers: {bundle: digest}."""
    run_id, cohort = await server.a_round(presigned=presigned)
    for _ in range(2):
        for seed, (worker, assignment) in enumerate(cohort):
            update = server.an_update(assignment, seed=seed)
            if presigned:
                answer = await sent(worker, assignment, update)
                assert answer.json()["admitted"] == "at-aggregation", answer.text
            else:
                await worker.send(assignment, update)
        await server.aggregate_now()
        if (run := await server.show(run_id)).status == "finished":
            return run.tensors
        cohort = [(worker, await worker.assignment()) for worker, _ in cohort]
    raise AssertionError(run)


async def test_what_passes_the_server_by_ends_in_the_same_digests(server, start_server, tmp_path):
    on_files = await start_server(
        performing=False, directory=tmp_path / "files", blobs=FileBlobs(tmp_path / "files")
    )
    assert await final_tensors(server, True) == await final_tensors(on_files, False)


async def test_the_store_takes_the_declared_bytes_and_no_others(server):
    _, [(worker, assignment), _] = await server.a_round(presigned=True)
    update = server.an_update(assignment)
    offer = await offered(worker, assignment, update)
    damaged = update.body[:-1] + bytes([update.body[-1] ^ 1])
    assert (await put(offer, damaged)).status_code == 400
    assert (await put(offer, update.body + b"x")).status_code == 403
    of_damaged = {"x-amz-checksum-sha256": checksum_of(damaged)}
    assert (await put(offer, damaged, **of_damaged)).status_code == 403, (
        "what was signed is not to be changed"
    )
    answer = await stored(worker, offer)
    assert (answer.status_code, answer.json()["code"]) == (408, "upload-interrupted")
    assert (await put(offer, update.body)).status_code == 200
    again = await put(offer, update.body, **{"Content-Encoding": "gzip"})
    assert again.status_code == 412, "nor is what is said of it changed"
    first = Receipt.model_validate((await stored(worker, offer)).json())
    assert (first.digest, first.outcome) == (update.header["digest"], "pending")
    assert Receipt.model_validate((await stored(worker, offer)).json()) == first


def checksum_of(body):
    return checksum(hashlib.sha256(body).digest())


async def test_an_update_of_another_shape_is_refused_before_its_receipt(server):
    _, [(worker, assignment), _] = await server.a_round(presigned=True)
    model = dict(reversed(MODEL.items()))
    assert list(model) != list(MODEL)
    answer = await sent(worker, assignment, server.an_update(assignment, model=model))
    assert (answer.status_code, answer.json()["code"]) == (422, "shape-mismatch")
    assert (await sent(worker, assignment, server.an_update(assignment))).status_code == 200


async def test_what_is_not_good_is_found_before_it_is_combined_and_the_round_goes_on(start_with):
    server = await start_with(signer(), quarantine_after=2)
    run_id, [(liar, first), (honest, other)] = await server.a_round(presigned=True, rounds=3)
    far = server.an_update(first, bundles={"delta": values_like(MODEL, 1.0)})
    assert (await sent(liar, first, far)).json()["admitted"] == "at-aggregation"
    good = server.an_update(other)
    await sent(honest, other, good)
    await server.aggregate_now()
    told = await receipt(liar, first)
    assert (told.outcome, told.version) == ("not-counted", None)
    assert told.reason.startswith("outside-bound: ")
    assert ((await receipt(honest, other)).outcome, (await receipt(honest, other)).version) == ("counted", 1)
    [row] = [each for each in await server.rounds(run_id) if each["round"] == 1]
    assert (row["status"], row["admitted"]) == ("committed", 1)
    row = (await server.operator.get(f"/v1/runs/{run_id}/rounds/1/workers")).json()["workers"][0]
    assert (row["standing"], row["reason"]) == ("not-counted", told.reason)

    second, other = await liar.assignment(), await honest.assignment()
    await sent(liar, second, nan_update(server, second))
    await sent(honest, other, server.an_update(other))
    await server.aggregate_now()
    answer = await liar.declare(second, far.header)
    assert answer.json()["code"] == "worker-quarantined"
    workers = (await server.operator.get("/v1/workers")).json()["workers"]
    [row] = [each for each in workers if each["worker_id"] == liar.worker_id]
    assert (row["refusals"], row["quarantined_ms"] is not None) == (2, True)


async def test_the_version_is_made_of_the_good_ones_alone(server, start_server, tmp_path):
    run_id, [(liar, first), (honest, other)] = await server.a_round(presigned=True)
    await sent(liar, first, nan_update(server, first))
    await sent(honest, other, server.an_update(other))
    await server.aggregate_now()
    alone = await start_server(
        performing=False, directory=tmp_path / "files", blobs=FileBlobs(tmp_path / "files")
    )
    expected, [(_, first), (worker, assignment)] = await alone.a_round()
    await worker.send(assignment)
    await alone.operator.post(f"/v1/runs/{expected}/rounds/1/aggregate")
    await alone.aggregate_now()
    assert (await server.show(run_id)).tensors == (await alone.show(expected)).tensors


async def test_a_round_of_too_few_good_updates_is_abandoned_and_says_why(server):
    run_id, cohort = await server.a_round(presigned=True, quorum=2, rounds=1)
    for seed, (worker, assignment) in enumerate(cohort):
        update = server.an_update(assignment, seed=seed) if seed else nan_update(server, assignment)
        await sent(worker, assignment, update)
    await server.aggregate_now()
    row = (await server.rounds(run_id))[0]
    assert (row["status"], row["version"]) == ("abandoned", None)
    assert row["reason"] == "1 updates were not good, 1 are left; the quorum is 2"
    assert (await receipt(*cohort[1])).outcome == "not-counted"


async def test_from_a_store_that_compares_nothing_the_server_reads_a_body_once(trusting, objects):
    _, [(worker, assignment), (other, second)] = await trusting.a_round(presigned=True)
    update = trusting.an_update(assignment)
    offer = await offered(worker, assignment, update)
    damaged = Update(update.header, update.body[:-1] + bytes([update.body[-1] ^ 1]))
    assert (await put(offer, damaged.body)).status_code == 200
    assert (await stored(worker, offer)).json()["code"] == "digest-mismatch"
    assert trusting.stores.blobs.parts() == [], "nothing is left of it"
    bad = await sent(other, second, nan_update(trusting, second))
    assert (bad.status_code, bad.json()["code"]) == (422, "not-finite")
    assert (await put(offer, update.body)).status_code == 200
    answer = await stored(worker, offer)
    assert (answer.status_code, answer.json()["admitted"]) == (200, "on-arrival")
    assert trusting.stores.blobs.parts() == []
    assert trusting.stores.blobs.size(update.header["digest"]) == len(update.body)


async def test_what_was_put_and_never_told_of_is_forgotten_with_its_assignment(trusting):
    run_id, [(worker, assignment), _] = await trusting.a_round(presigned=True)
    update = trusting.an_update(assignment)
    offer = await offered(worker, assignment, update)
    await put(offer, update.body)
    assert trusting.stores.blobs.parts() != []
    await trusting.operator.post(f"/v1/runs/{run_id}/cancel")
    await trusting.service.housekeeping.look()
    assert trusting.stores.blobs.parts() == []


async def test_a_worker_that_prefers_it_is_sent_to_the_store_for_tensors(server):
    run_id, [(worker, assignment), _] = await server.a_round(presigned=True)
    digest = assignment["tensors"]["params"]
    path = f"/v1/runs/{run_id}/tensors/{digest}"
    whole = (await worker.http.get(path)).content
    assert hashlib.sha256(whole).hexdigest() == digest
    elsewhere = await worker.http.get(path, headers={"Prefer": "wait=5, presigned"})
    assert (elsewhere.status_code, elsewhere.content) == (307, b"")
    async with httpx.AsyncClient() as client:
        address = elsewhere.headers["Location"]
        assert (await client.get(address)).content == whole
        part = await client.get(address, headers={"Range": "bytes=100-"})
        assert (part.status_code, part.content) == (206, whole[100:])
        assert (await client.put(address, content=b"x")).status_code == 403
    stranger = await server.enrol("stranger", tasks=("another",))
    answer = await stranger.http.get(path, headers={"Prefer": "presigned"})
    assert answer.status_code == 404
    other_run = (await server.a_run()).run_id
    answer = await server.operator.get(
        f"/v1/runs/{other_run}/tensors/{digest}", headers={"Prefer": "presigned"}
    )
    assert answer.status_code == 200, "this run does not let them"


async def test_where_no_address_can_be_signed_bytes_pass_through_the_server(start_with):
    server = await start_with(signer(secret_key="another"))
    _, [(worker, assignment), _] = await server.a_round(presigned=True)
    offer = await offered(worker, assignment, server.an_update(assignment))
    assert offer["put"] is None
    assert (await worker.send(assignment)).admitted == "on-arrival"


async def test_addresses_name_where_workers_reach_the_store(start_with, s3):
    elsewhere = s3.endpoint.replace("127.0.0.1", "localhost")
    server = await start_with(signer(public_url=elsewhere))
    _, [(worker, assignment), _] = await server.a_round(presigned=True)
    update = server.an_update(assignment)
    offer = await offered(worker, assignment, update)
    assert offer["put"]["url"].startswith(f"{elsewhere}/")
    assert (await put(offer, update.body)).status_code == 200
    assert (await stored(worker, offer)).status_code == 200


async def test_a_server_on_files_holds_no_such_run(start_server):
    server = await start_server()
    answer = await server.operator.post("/v1/runs", json=await server.a_spec(presigned=True))
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-message")
    assert "only it can reach" in answer.json()["detail"]


async def test_in_an_asynchronous_run_the_workers_that_are_left_make_the_quorum(server):
    run_id, cohort = await server.a_round(presigned=True, asynchronous={}, quorum=2, rounds=2)
    for seed, (worker, assignment) in enumerate(cohort):
        update = server.an_update(assignment, seed=seed) if seed else nan_update(server, assignment)
        assert (await sent(worker, assignment, update)).status_code == 200
    await server.aggregate_now()
    row = (await server.rounds(run_id))[0]
    assert row["reason"] == "1 updates were not good, 1 are left of 1 workers; the quorum is 2"
    for seed, (worker, _) in enumerate(cohort, start=7):
        again = await worker.assignment()
        assert (await sent(worker, again, server.an_update(again, seed=seed))).status_code == 200
    await server.aggregate_now()
    assert (await server.show(run_id)).version == 1


async def test_only_an_update_that_is_found_good_ends_the_row_of_those_that_were_not(server):
    _, [(worker, assignment), (other, _)] = await server.a_round(presigned=True, quorum=1, rounds=3)

    async def refusals():
        workers = (await server.operator.get("/v1/workers")).json()["workers"]
        return {each["worker_id"]: each["refusals"] for each in workers}[worker.worker_id]

    far = server.an_update(assignment, bundles={"delta": values_like(MODEL, 1.0)})
    offer = await offered(worker, assignment, far)
    assert (await worker.put(offer["upload_url"], far.body)).json()["code"] == "outside-bound"
    await sent(worker, assignment, server.an_update(assignment))
    assert await refusals() == 1, "nobody has looked into it"
    await other.send(await other.assignment())
    await server.aggregate_now()
    assert await refusals() == 0


def broken(update):
    """A body whose header is as declared, and what follows is no payload."""
    body = bytearray(update.body)
    first = body.index(b"\xc4")
    body[first] = 0xC1
    return Update(update.declared(digest=hashlib.sha256(body).hexdigest()), bytes(body))


async def test_a_message_that_cannot_be_read_is_not_good_either_and_counts_against_its_worker(start_with):
    server = await start_with(signer(), quarantine_after=1)
    run_id, [(liar, first), (honest, other)] = await server.a_round(presigned=True, rounds=3)
    assert (await sent(liar, first, broken(server.an_update(first)))).status_code == 200
    await sent(honest, other, server.an_update(other))
    await server.aggregate_now()
    assert (await receipt(liar, first)).reason.startswith("malformed-tensor-message: ")
    assert (await server.show(run_id)).version == 1
    assert (await liar.ask()).status_code == 204
    assert "quarantine" in (server.directory / "audit.jsonl").read_text()


async def test_what_a_liar_says_of_its_loss_is_not_among_the_metrics(server):
    run_id, [(liar, first), (honest, other)] = await server.a_round(presigned=True)
    bad = nan_update(server, first)
    await sent(liar, first, Update(bad.declared(metrics={"train_loss": 1e30}), bad.body))
    good = server.an_update(other)
    await sent(honest, other, Update(good.declared(metrics={"train_loss": 0.5}), good.body))
    await server.aggregate_now()
    row = (await server.rounds(run_id))[0]
    assert (row["admitted"], row["refused"], row["metrics"]) == (1, 1, {"train_loss": 0.5})


async def test_in_any_other_run_nothing_is_taken_from_the_store(server):
    _, [(worker, assignment), (other, second)] = await server.a_round(presigned=False)
    update = server.an_update(assignment)
    await worker.send(assignment, update)
    offer = await offered(other, second, server.an_update(second))
    assert offer["put"] is None
    assert (await stored(other, offer)).json()["code"] == "upload-interrupted"


async def test_few_updates_of_one_assignment_are_let_into_the_store(server):
    _, [(worker, assignment), _] = await server.a_round(presigned=True)
    updates = [server.an_update(assignment, seed=seed) for seed in range(4)]
    offers = [await offered(worker, assignment, update) for update in [*updates, updates[0]]]
    assert [offer["put"] is not None for offer in offers] == [True, True, False, False, True]


async def test_from_a_store_that_compares_nothing_no_other_length_is_taken(trusting, objects):
    _, [(worker, assignment), _] = await trusting.a_round(presigned=True)
    update = trusting.an_update(assignment)
    offer = await offered(worker, assignment, update)
    objects.put(f"parts/{offer['upload_url'].rpartition('/')[2]}/arrived", update.body + b"x")
    assert (await stored(worker, offer)).json()["code"] == "size-mismatch"
    assert trusting.stores.blobs.parts() == []


def answering(*statuses):
    """A store that answers so, in turn."""
    following = iter(statuses)
    return lambda *_: next(following)


async def test_a_store_that_compares_nothing_is_found_out(start_with):
    """By what it answers to bytes of another SHA-256."""
    server = await start_with(signer(), answering(200, 200))
    _, [(worker, assignment), _] = await server.a_round(presigned=True)
    update = server.an_update(assignment)
    offer = await offered(worker, assignment, update)
    assert set(offer["put"]["headers"]) == {"Content-Length"}
    assert (await put(offer, update.body + b"x")).status_code == 403
    assert (await put(offer, update.body)).status_code == 200
    assert (await stored(worker, offer)).json()["admitted"] == "on-arrival"


@pytest.mark.parametrize("answers", [[301], [200, 503], [403]])
def test_a_store_of_which_it_cannot_be_told_gets_no_requests_for_now(objects, answers):
    addresses = Addresses(objects, "s3", signer(), put=answering(*answers))
    for _ in range(2):  # it is not asked again at once
        with pytest.raises(StorageUnavailable):
            addresses.upload("u-1", "0" * 64, 10)


async def test_credentials_that_cannot_be_had_are_no_addresses(start_with):
    def fails():
        raise CredentialRetrievalError(provider="x", error_msg="y")

    server = await start_with(S3Signer("", fails))
    run_id, [(worker, assignment), _] = await server.a_round(presigned=True)
    assert (await offered(worker, assignment, server.an_update(assignment)))["put"] is None
    path = f"/v1/runs/{run_id}/tensors/{assignment['tensors']['params']}"
    assert (await worker.http.get(path, headers={"Prefer": "presigned"})).status_code == 200


def test_the_region_is_found_behind_any_access_key():
    plain = "https://s3.example/b/k?X-Amz-Credential=team%2Fkey%2F20261126%2Feu-1%2Fs3%2Faws4_request"
    url = signer().sign("GET", plain, {}, 60)
    assert f"{ACCESS_KEY}%2F" in url
    assert "%2Feu-1%2Fs3%2F" in url


async def test_of_two_servers_one_leaves_out_what_is_not_good_and_the_other_finds_nothing_to_do(
    objects, tmp_path, start_server, new_database
):
    one, other = await two_servers(objects, tmp_path, start_server, new_database)
    run_id, [(liar, first), (honest, second)] = await one.a_round(presigned=True)
    await sent(liar, first, nan_update(one, first))
    honest.move_to(other)
    await sent(honest, second, other.an_update(second))
    await asyncio.gather(perform_effects(one.runner, quarantine_after=5), perform_effects(other.runner))
    row = (await other.rounds(run_id))[0]
    assert (row["status"], row["admitted"], row["refused"]) == ("committed", 1, 1)
    assert (await receipt(liar, first)).outcome == "not-counted"


async def test_who_has_lost_the_lease_refuses_nothing(objects, tmp_path, start_server, new_database):
    one, other = await two_servers(objects, tmp_path, start_server, new_database)
    run_id, cohort = await one.a_round(presigned=True)
    for seed, (worker, assignment) in enumerate(cohort):
        await sent(worker, assignment, one.an_update(assignment, seed=seed))
    async with one.stores.records.read() as connection:
        [effect] = await effect_records.pending_effects(connection)
        updates = await update_records.updates_of_round(connection, run_id, 1)
    assert await other.runner.leases.take(effect.effect_id)
    refused = [(updates[0], NotFinite("x"))]
    assert await late_checks._refuse(one.runner, effect, refused, 1) == []
    assert (await receipt(*cohort[0])).outcome == "pending"


@pytest.mark.parametrize("wrong", ["the update", "its params"])
async def test_a_read_that_goes_wrong_is_nobody_s_fault(start_server, objects, tmp_path, wrong):
    """The store gives other bytes once: they are read again, from the store itself."""

    @dataclass(frozen=True)
    class Wrong(ObjectAccess):
        """Changes a byte of one object, the first time that it is read."""

        keys: list[str] = field(default_factory=list)

        def read(self, key, start, stop):
            data = super().read(key, start, stop)
            if key in self.keys and data is not None:
                self.keys.remove(key)
                changed = bytearray(data)
                changed[-1] ^= 0x40
                return memoryview(changed)
            return data

    faulty = Wrong(objects.store, objects.name)
    blobs = ObjectBlobs(faulty, tmp_path / "spool", Addresses(faulty, "s3", signer()))
    server = await start_server(performing=False, blobs=blobs, quarantine_after=1)
    run_id, [(worker, assignment), (other, second)] = await server.a_round(presigned=True)
    update = server.an_update(assignment)
    await sent(worker, assignment, update)
    await sent(other, second, server.an_update(second, seed=1))
    digest = update.header["digest"] if wrong == "the update" else assignment["tensors"]["params"]
    blobs.forget(digest)
    faulty.keys.append(blob_key(digest))
    await server.aggregate_now()
    assert faulty.keys == []
    assert (await receipt(worker, assignment)).outcome == "counted"
    assert (await server.rounds(run_id))[0]["refused"] == 0
