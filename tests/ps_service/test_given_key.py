# SPDX-License-Identifier: Apache-2.0
"""The operator key of a mounted Secret: good from the start, replaced by the next, and gone once revoked."""

import asyncio
import json
import logging
import secrets
from pathlib import Path

import pytest

from protocol.errors import InvalidUsage
from ps_service.auth import hash_secret
from ps_service.given_key import PREFIX, admit, given_key
from ps_service.operator_keys import EVERYTHING
from tests.ps_service.test_two_servers import start_two as start_two  # a fixture

FIRST, SECOND, THIRD = (f"fso_{letter}" + secrets.token_hex(32) for letter in "abc")


def a_file(folder: Path, content: str, mode: int = 0o440) -> Path:
    file = folder / "key"
    file.write_text(content)
    file.chmod(mode)
    return file


async def given(server, key):
    """What a start with this key does."""
    await admit(key, server.stores, server.clock, server.service.audit)


async def is_good(server, key):
    return (await server.client(key).get("/v1/keys")).status_code == 200


async def given_ids(server, *, good=True):
    keys = (await server.operator.get("/v1/keys")).json()["keys"]
    return [
        each["key_id"]
        for each in keys
        if each["key_id"].startswith(PREFIX) and good is (each["revoked_ms"] is None)
    ]


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_key_is_the_one_line_of_its_file(tmp_path, end):
    assert given_key(a_file(tmp_path, FIRST + end)) == FIRST


@pytest.mark.parametrize("made", [secrets.token_hex, secrets.token_urlsafe])
def test_what_chance_makes_is_taken(tmp_path, made):
    for _ in range(100):
        assert given_key(a_file(tmp_path, "fso_" + made(32), 0o600))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\n",
        "fso_",
        secrets.token_hex(32),  # nothing says what it is
        "fso_" + secrets.token_hex(21),  # 42 digits
        "fso_" + secrets.token_hex(101),
        "fso_" + "a" * 64,
        "fso_" + "0123456789" * 6,
        "fso_" + "ThisIsMyPassword" * 4,
        "fso_changeme",
        "fsa_" + secrets.token_hex(32),
        f"{FIRST}\n{SECOND}\n",
        f"key={FIRST}",
        f'"{FIRST}"',
        "\ufeff" + FIRST,
        FIRST + "\n" * 2000,
        "x" * 2000,
    ],
)
def test_what_is_no_key_or_was_thought_up_is_refused_and_not_repeated(tmp_path, content):
    file = a_file(tmp_path, content)
    with pytest.raises(InvalidUsage) as refused:
        given_key(file)
    said = refused.value.detail
    assert said.startswith(f"FED_SOPHIA_SERVER_OPERATOR_KEY_FILE {file}: ")
    assert "openssl rand" in said
    for piece in content.split():
        assert len(piece) < 8 or piece not in said


@pytest.mark.parametrize("mode", [0o666, 0o602])
def test_a_key_that_every_user_of_the_machine_could_have_put_there_is_refused(tmp_path, mode):
    with pytest.raises(InvalidUsage, match="every user of this machine can change it"):
        given_key(a_file(tmp_path, FIRST, mode))


@pytest.mark.parametrize(("mode", "warns"), [(0o444, True), (0o440, False), (0o400, False)])
def test_of_a_key_that_every_user_of_the_machine_can_read_there_is_a_warning(tmp_path, caplog, mode, warns):
    assert given_key(a_file(tmp_path, FIRST, mode)) == FIRST
    assert ("every user of this machine can read it" in caplog.text) is warns


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_a_file_that_is_none_is_refused_by_name(tmp_path, name):
    with pytest.raises(InvalidUsage, match=r"No such file|is no file"):
        given_key(tmp_path / name)


async def test_a_given_key_may_do_everything_and_is_the_same_at_every_start(server):
    for _ in range(3):
        await given(server, FIRST)
    assert await is_good(server, FIRST)
    [key_id] = await given_ids(server)
    keys = (await server.operator.get("/v1/keys")).json()["keys"]
    assert {scope for each in keys if each["key_id"] == key_id for scope in each["scopes"]} == EVERYTHING


async def test_a_new_key_takes_the_place_of_the_one_before_and_of_no_other(server):
    asked = {"label": "ci", "scopes": ["runs:read", "keys:write"]}
    made = (await server.operator.post("/v1/keys", json=asked)).json()["operator_key"]
    await given(server, FIRST)
    await given(server, SECOND)
    assert (await is_good(server, FIRST), await is_good(server, SECOND)) == (False, True)
    assert await is_good(server, made)
    assert len(await given_ids(server)) == 1


async def test_a_key_that_was_replaced_does_not_come_back_and_takes_nobody_s_place(server, caplog):
    """A server that still sees the Secret as it was starts late."""
    await given(server, FIRST)
    await given(server, SECOND)
    with caplog.at_level(logging.WARNING):
        await given(server, FIRST)
    assert (await is_good(server, FIRST), await is_good(server, SECOND)) == (False, True)
    assert (await given_ids(server, good=False))[0] in caplog.text
    await given(server, THIRD)
    assert await is_good(server, THIRD)


async def test_a_key_that_an_operator_revoked_stays_revoked_at_the_next_start(server, caplog):
    await given(server, FIRST)
    [key_id] = await given_ids(server)
    assert (await server.operator.delete(f"/v1/keys/{key_id}")).status_code == 204
    with caplog.at_level(logging.WARNING):
        await given(server, FIRST)
    assert not await is_good(server, FIRST)
    assert key_id in caplog.text and "put another there" in caplog.text


async def test_the_key_of_a_server_s_own_first_start_can_be_given_and_stays_what_it_is(server):
    own = server.operator.headers["authorization"].removeprefix("Bearer ")
    await given(server, own)
    assert await given_ids(server) == []
    await given(server, FIRST)
    assert await is_good(server, own)


async def test_two_servers_share_a_given_key_and_what_became_of_it(start_two):
    one, other = await start_two()
    await asyncio.gather(given(one, FIRST), given(other, FIRST))
    assert await is_good(one, FIRST) and await is_good(other, FIRST)
    assert len(await given_ids(one)) == 1
    await given(other, SECOND)  # it is restarted first
    assert not await is_good(one, FIRST)
    await given(one, FIRST)  # and this one sees the file as it was
    assert await is_good(one, SECOND) and not await is_good(other, FIRST)


async def test_the_database_and_the_logs_hold_nothing_of_the_key_but_its_hash(start_server, caplog):
    server = await start_server(on_disk=True)
    with caplog.at_level(logging.DEBUG):
        for key in (FIRST, SECOND, FIRST):
            await given(server, key)
    audit = (server.directory / "audit.jsonl").read_text()
    files = b"".join(path.read_bytes() for path in server.directory.glob("records.sqlite*"))
    for key in (FIRST, SECOND):
        assert key not in caplog.text + audit and key.encode() not in files
        assert hash_secret(key) not in caplog.text + audit
    did = [json.loads(line)["did"] for line in audit.splitlines()]
    assert did == ["admit", "admit", "revoke"]
