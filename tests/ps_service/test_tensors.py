# SPDX-License-Identifier: Apache-2.0
"""Global state by digest: cached, in ranges, and only for those who have a part in it."""

import base64

import pytest

from protocol.codec import MEDIA_TYPE, digest_of


@pytest.fixture
async def state(server):
    """A worker in an open round, the address of the run's params and their bytes."""
    run_id, [(worker, assignment), _] = await server.a_round()
    digest = assignment["tensors"]["params"]
    content = bytearray(server.stores.blobs.size(digest))
    server.stores.blobs.read_into(digest, 0, content)
    return worker, f"/v1/runs/{run_id}/tensors/{digest}", bytes(content), digest


async def test_a_worker_gets_the_bytes_its_assignment_names(state):
    worker, url, content, digest = state
    answer = await worker.http.get(url)
    assert (answer.status_code, answer.content) == (200, content)
    assert digest_of([answer.content]) == digest
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert answer.headers["content-length"] == str(len(content))
    assert answer.headers["etag"] == f'"{digest}"'
    assert "immutable" in answer.headers["cache-control"]
    assert "private" in answer.headers["cache-control"]
    checksum = base64.b64encode(bytes.fromhex(digest)).decode()
    assert answer.headers["repr-digest"] == f"sha-256=:{checksum}:"


async def test_head_says_the_same_without_the_bytes(state):
    worker, url, content, digest = state
    answer = await worker.http.head(url)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(len(content))
    assert answer.headers["etag"] == f'"{digest}"'


@pytest.mark.parametrize("known", ['"{}"', 'W/"{}"', '"other", "{}"', "*"])
async def test_what_is_cached_is_not_sent_again(state, known):
    worker, url, _, digest = state
    answer = await worker.http.get(url, headers={"If-None-Match": known.format(digest)})
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["etag"] == f'"{digest}"'


async def test_another_cached_version_does_not_help(state):
    worker, url, content, _ = state
    answer = await worker.http.get(url, headers={"If-None-Match": '"other"'})
    assert answer.content == content


@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        ("bytes=0-9", slice(0, 10)),
        ("bytes=10-", slice(10, None)),
        ("bytes=-7", slice(-7, None)),
        ("bytes=5-5", slice(5, 6)),
        ("bytes=100-99999999", slice(100, None)),
    ],
)
async def test_a_range_is_that_part(state, wanted, part):
    worker, url, content, _ = state
    answer = await worker.http.get(url, headers={"Range": wanted})
    first = part.indices(len(content))[0]
    last = first + len(content[part]) - 1
    assert (answer.status_code, answer.content) == (206, content[part])
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(content)}"
    assert answer.headers["content-length"] == str(len(content[part]))


async def test_ranges_that_cover_all_or_make_no_sense_get_everything(state):
    worker, url, content, _ = state
    for wanted in (
        "bytes=0-",
        "bytes=-99999999",
        "bytes=0-1,5-6",
        "lines=1-2",
        "bytes=9-5",
        "bytes=-",
        "nonsense",
        "bytes=" + "9" * 5000 + "-",
    ):
        answer = await worker.http.get(url, headers={"Range": wanted})
        assert (answer.status_code, answer.content) == (200, content), wanted


@pytest.mark.parametrize("wanted", ["bytes=99999999-", "bytes=-0"])
async def test_a_range_beyond_the_end_is_refused(state, wanted):
    worker, url, _, _ = state
    answer = await worker.http.get(url, headers={"Range": wanted})
    assert (answer.status_code, answer.json()["code"]) == (416, "range-not-satisfiable")


async def test_a_range_of_another_version_gets_everything(state):
    worker, url, content, digest = state
    part = await worker.http.get(url, headers={"Range": "bytes=0-9", "If-Range": f'"{digest}"'})
    whole = await worker.http.get(url, headers={"Range": "bytes=0-9", "If-Range": '"other"'})
    assert (part.status_code, whole.status_code, whole.content) == (206, 200, content)


async def test_only_those_with_a_part_in_the_run_may_read(server, state):
    _, url, content, _ = state
    trainer = await server.enrol("stranger")
    elsewhere = await server.enrol("elsewhere", role="evaluator", tasks=("other",))
    judge = await server.enrol("judge", role="evaluator")
    for stranger in (trainer, elsewhere):
        answer = await stranger.http.get(url)
        assert (answer.status_code, answer.json()["code"]) == (404, "not-found")
    for reader in (judge.http, server.operator):
        assert (await reader.get(url)).content == content


async def test_updates_are_nobodys_to_read(server):
    run_id, [(worker, assignment), (other, _)] = await server.a_round()
    receipt = await worker.send(assignment)
    for reader in (worker.http, other.http, server.operator):
        assert (await reader.get(f"/v1/runs/{run_id}/tensors/{receipt.digest}")).status_code == 404


async def test_the_state_of_one_run_is_not_read_through_another(server, state):
    worker, url, _, digest = state
    other = await server.a_run(task="other", model={"w": (3,)})
    assert (await worker.http.get(f"/v1/runs/{other.run_id}/tensors/{digest}")).status_code == 404
    assert (await server.operator.get(f"/v1/runs/{other.run_id}/tensors/{digest}")).status_code == 404
    assert (await server.operator.get(url.replace(digest, "../../operator.key"))).status_code in (404, 422)


async def test_a_lost_blob_is_named_as_such(server, state):
    worker, url, _, digest = state
    server.stores.blobs.delete(digest)
    answer = await worker.http.get(url)
    assert (answer.status_code, answer.json()["code"]) == (500, "storage-corrupt")


async def put(server, digest, content, **headers):
    headers = {"Content-Type": MEDIA_TYPE} | headers
    return await server.operator.put(f"/v1/tensors/{digest}", content=content, headers=headers)


async def test_storing_the_same_tensors_again_is_no_error(server, message):
    content = message("state", {"params": {"w": [1, 2, 3]}})
    digest = digest_of([content])
    assert [(await put(server, digest, content)).status_code for _ in range(2)] == [201, 200]


@pytest.mark.parametrize(
    ("values", "kind", "spoil", "code"),
    [
        ([1.0], "state", lambda content: content + b"x", "malformed-tensor-message"),
        ([1.0], "state", lambda content: content[:-1], "truncated-tensor-message"),
        ([1.0], "update", bytes, "malformed-tensor-message"),
        ([float("nan")], "state", bytes, "not-finite"),
    ],
)
async def test_bad_tensors_are_refused_and_not_kept(server, message, values, kind, spoil, code):
    content = spoil(message(kind, {"params": {"w": values}}))
    before = await server.inventory()
    answer = await put(server, digest_of([content]), content)
    assert answer.json()["code"] == code
    assert await server.inventory() == before


async def test_tensors_under_a_false_name_are_refused(server, message):
    answer = await put(server, "0" * 64, message("state", {"params": {"w": [1]}}))
    assert answer.json()["code"] == "digest-mismatch"
    assert (await put(server, "../secrets", b"x")).status_code in (404, 422)


async def test_tensors_larger_than_the_limit_are_refused_by_their_announcement(start_server, message):
    server = await start_server(max_body_bytes=100)
    content = message("state", {"params": {"w": [0] * 50}})
    answer = await put(server, digest_of([content]), content)
    assert (answer.status_code, answer.json()["code"]) == (413, "message-too-large")
