# SPDX-License-Identifier: Apache-2.0
"""How much of a refused body is read before the sender hears why."""

import asyncio

import pytest

from protocol.codec import MEDIA_TYPE

DIGEST = "0" * 64
PIECE = bytes(64 * 1024)


class Sender:
    """A body that goes on and on, and how much of it was taken."""

    def __init__(self, piece, pieces):
        self.piece = piece
        self.pieces = pieces
        self.taken_bytes = 0

    async def __aiter__(self):
        for _ in range(self.pieces):
            await asyncio.sleep(0)
            self.taken_bytes += len(self.piece)
            yield self.piece


async def refused(client, url, sender):
    async with asyncio.timeout(30):
        answer = await client.put(url, content=sender, headers={"Content-Type": MEDIA_TYPE})
    assert answer.status_code >= 400
    return sender.taken_bytes


@pytest.mark.parametrize("url", [f"/v1/tensors/{DIGEST}", "/v1/uploads/u-1"])
async def test_of_a_stranger_s_body_no_more_than_a_mebibyte_is_read(server, url):
    assert await refused(server.client("wrong"), url, Sender(PIECE, 100)) <= 1024**2 + len(PIECE)


async def test_of_a_known_sender_s_body_more_is_read(server):
    worker = await server.enrol("known")
    taken = await refused(worker.http, "/v1/uploads/u-1", Sender(PIECE, 100))
    assert taken == 100 * len(PIECE)


async def test_a_body_that_the_disk_will_not_have_is_read_to_its_end_all_the_same(server):
    _, cohort = await server.a_round()
    worker, assignment = cohort[0]
    update = server.an_update(assignment)
    url = (await worker.declare(assignment, update.header)).json()["upload_url"]
    (server.directory / "staging").rmdir()
    (server.directory / "parts").rmdir()
    for client, path in ((worker.http, url), (server.operator, f"/v1/tensors/{DIGEST}")):
        sender = Sender(update.body[:8], len(update.body) // 8)
        headers = {"Content-Type": MEDIA_TYPE, "Content-Length": str(len(update.body))}
        answer = await client.put(path, content=sender, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (507, "storage-not-writable")
        assert answer.headers["Retry-After"] == "1"
        assert str(server.directory) not in answer.text
        assert sender.taken_bytes // 8 == len(update.body) // 8


async def test_a_body_that_trickles_is_not_drained_for_ever(start_server):
    """Each piece comes in time; all together do not."""
    server = await start_server(body_timeout_s=0.05)
    worker = await server.enrol("slow")
    pieces = 10**9
    for client in (server.client("wrong"), worker.http):
        assert await refused(client, "/v1/uploads/u-1", Sender(b"x", pieces)) < pieces
