# SPDX-License-Identifier: Apache-2.0
"""JSON that is made to hurt, deep, long or with numbers no machine has: refused by name in bounded memory."""

import json
import tracemalloc

import pytest

JSON = {"Content-Type": "application/json"}
MEBIBYTE = 1024 * 1024
LONG = 512 * 1024
"""Where operators send specs and histories."""
SHORT = 60_000
"""Where anybody sends anything."""
MOST_FOR_A_BYTE = 250
"""Bytes of memory that one of a body may cost at the worst: it is an object then, and validation names it."""


def nested(opening: bytes, size_bytes: int, closing: bytes = b"") -> bytes:
    depth = size_bytes // (len(opening) + len(closing))
    return opening * depth + b"0" * bool(closing) + closing * depth


def bombs(size_bytes: int) -> dict[str, bytes]:
    """Bodies of about this size."""
    digits = b"9" * (size_bytes - 100)
    return {
        "arrays without an end": nested(b"[", size_bytes),
        "arrays in arrays": nested(b"[", size_bytes, b"]"),
        "objects in objects": nested(b'{"a":', size_bytes, b"}"),
        "a field of arrays in arrays": b'{"name":' + nested(b"[", size_bytes, b"]") + b"}",
        "a number of many digits": b'{"uses":' + digits + b',"rounds":' + b"9}",
        "a fraction of many digits": b'{"deadline_s": 0.' + digits + b"}",
        "an exponent of many digits": b'{"deadline_s": 1e' + digits + b"}",
        "a string of any length": b'{"name": "' + digits + b'"}',
        "escapes": b'{"name": "' + b"\\ud800" * (size_bytes // 6 - 10) + b'"}',
        "a name of any length": b'{"' + digits + b'": 1}',
        "many fields": json.dumps({f"{n:x}": 0 for n in range(size_bytes // 12)}).encode(),
        "one field again and again": b"{" + b'"name":0,' * (size_bytes // 9 - 1) + b'"name":0}',
        "many empty objects": b'{"model": [' + b"{}," * (size_bytes // 3 - 10) + b"{}]}",
        "not a number": b'{"deadline_s": NaN, "seed": -Infinity}',
        "more than a float": b'{"deadline_s": 1e999}',
        "not UTF-8": b'{"name": "\xff\xfe"}',
        "zeros": bytes(size_bytes),
        "UTF-16": '{"uses": "x"}'.encode("utf-16"),
    }


@pytest.mark.parametrize(
    ("path", "size_bytes"), [("/v1/tokens", SHORT), ("/v1/runs", LONG), ("/v1/runs/import", LONG)]
)
async def test_json_that_is_made_to_hurt_is_refused_by_name_in_bounded_memory(server, path, size_bytes):
    before = await server.inventory()
    for what, body in bombs(size_bytes).items():
        tracemalloc.start()
        try:
            answer = await server.operator.post(path, content=body, headers=JSON)
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid-message"), what
        assert len(answer.content) < 4_000, what
        assert peak_bytes < MEBIBYTE + MOST_FOR_A_BYTE * len(body), what
    assert await server.inventory() == before


async def test_a_name_of_any_length_is_not_sent_back_whole(server):
    for answer in (
        await server.operator.post("/v1/tokens", json={"n" * SHORT: 1}),
        await server.operator.get("/v1/" + "n" * SHORT),
        await server.operator.get("/v1/runs/" + "n" * SHORT),
    ):
        assert answer.status_code in (404, 422)
        detail = answer.json()["detail"]
        assert (len(detail), detail[-2:]) == (1_000, "n…")
