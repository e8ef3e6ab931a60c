# SPDX-License-Identifier: Apache-2.0
"""Who a worker is stays on its disk, and belongs to one server."""

import json
import stat
from pathlib import Path

import pytest

from protocol.errors import InvalidUsage, LocalStateCorrupt, StateNotWritable
from worker.identity import Identity, identity_in, save_identity

SERVER = "https://fed.example"


def test_the_key_is_on_disk_before_anyone_can_use_it(tmp_path: Path):
    made = identity_in(tmp_path / "state", SERVER)

    assert identity_in(tmp_path / "state", SERVER) == made
    assert made.worker_id is None
    assert made.server_id is None
    assert len(made.private_key) == 43


def test_two_workers_never_share_a_key(tmp_path: Path):
    assert identity_in(tmp_path / "a", SERVER).private_key != identity_in(tmp_path / "b", SERVER).private_key


def test_the_file_and_its_directory_are_closed_to_other_users(tmp_path: Path):
    identity_in(tmp_path / "state", SERVER)

    assert stat.S_IMODE((tmp_path / "state" / "identity.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_the_id_given_at_enrolment_is_found_at_the_next_start(tmp_path: Path):
    made = identity_in(tmp_path, SERVER)
    save_identity(tmp_path, made.model_copy(update={"worker_id": "w-1"}))

    expected = Identity(server_url=SERVER, private_key=made.private_key, worker_id="w-1")
    assert identity_in(tmp_path, SERVER) == expected


def test_a_state_directory_refuses_to_serve_a_second_server(tmp_path: Path):
    identity_in(tmp_path, SERVER)

    with pytest.raises(InvalidUsage, match=r"belongs to https://fed\.example, not to https://other"):
        identity_in(tmp_path, "https://other.example")


def test_a_slash_at_the_end_does_not_make_another_server(tmp_path: Path):
    assert identity_in(tmp_path, SERVER) == identity_in(tmp_path, SERVER + "/")


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b'{"server_url": "https://fed.example", "private_key": "short"}',
        b'{"schema_version": 1, "server_url": "https://fed.example"}',
        b'{"schema_version": 3, "server_url": "https://fed.example"}',
    ],
)
def test_a_damaged_identity_is_named_and_not_replaced_by_a_new_one(tmp_path: Path, damage: bytes):
    (tmp_path / "identity.json").write_bytes(damage)

    with pytest.raises(LocalStateCorrupt, match="the worker's identity"):
        identity_in(tmp_path, SERVER)
    assert (tmp_path / "identity.json").read_bytes() == damage


def test_a_disk_that_takes_no_identity_is_named(tmp_path: Path):
    (tmp_path / "state").write_bytes(b"a file, where the directory should be")

    with pytest.raises(StateNotWritable, match=str(tmp_path / "state")):
        save_identity(tmp_path / "state", Identity(server_url=SERVER))


def test_no_private_key_is_in_what_is_printed_of_an_identity(tmp_path: Path):
    made = identity_in(tmp_path, SERVER).model_copy(update={"next_private_key": "n" * 43})
    assert made.private_key not in repr(made)
    assert "n" * 43 not in repr(made)


def test_an_identity_of_the_time_before_keys_leads_to_a_new_key_that_has_yet_to_enrol(tmp_path: Path):
    before = {"schema_version": 1, "server_url": SERVER, "secret": "s" * 43, "worker_id": "w-1"}
    (tmp_path / "identity.json").write_text(json.dumps(before))

    found = identity_in(tmp_path, SERVER)

    assert (found.worker_id, found.server_id) == (None, None)
    assert found.private_key != "s" * 43
    assert identity_in(tmp_path, SERVER) == found
    assert "s" * 43 not in (tmp_path / "identity.json").read_text()


def test_an_identity_of_the_time_before_keys_still_belongs_to_its_server(tmp_path: Path):
    before = {"schema_version": 1, "server_url": SERVER, "secret": "s" * 43, "worker_id": "w-1"}
    (tmp_path / "identity.json").write_text(json.dumps(before))

    with pytest.raises(InvalidUsage, match=r"belongs to https://fed\.example"):
        identity_in(tmp_path, "https://other.example")


def test_a_crash_while_saving_leaves_the_old_identity(tmp_path: Path):
    made = identity_in(tmp_path, SERVER)

    def crash(descriptor: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_identity(tmp_path, made.model_copy(update={"worker_id": "w-1"}), crash)
    assert identity_in(tmp_path, SERVER) == made
