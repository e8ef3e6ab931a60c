# SPDX-License-Identifier: Apache-2.0
"""A worker makes itself known, waits to be let in, comes back, and changes its key."""

import json
from pathlib import Path

import pytest

from protocol.assertions import public_key_of
from protocol.errors import AssertionRefused, InvalidUsage, Unauthenticated, WorkerExpired
from tests.worker.small_server import (
    ANSWER_LOST,
    JOIN_TOKEN,
    SmallServer,
    a_server,
    in_turn,
    problem,
    training,
)
from tests.worker.workplace import StubTrainer, Workplace
from worker.events import Reconnecting
from worker.identity import Identity, identity_in, save_identity

URL = "http://fed.example"


def identity_of(place: Workplace) -> Identity:
    return identity_in(place.state_dir, URL)


async def enrolled(tmp_path: Path, *later: int) -> Workplace:
    """A worker that has enrolled and done one assignment; those of these numbers are still to come."""
    place = Workplace(tmp_path, a_server(training(1), *map(training, later)))
    await place.work(StubTrainer(), max_assignments=1)
    return place


# --- the first time ----------------------------------------------------------------------------


async def test_a_worker_keeps_which_server_it_signs_for(tmp_path: Path):
    place = await enrolled(tmp_path)

    found = identity_of(place)
    assert (found.worker_id, found.server_id) == ("w-1", JOIN_TOKEN.server_id)
    assert public_key_of(found.private_key) == place.server.key


async def test_what_is_no_join_token_is_refused_before_anything_is_sent(tmp_path: Path):
    place = Workplace(tmp_path, a_server(), join_token="fsj_not-one")
    with pytest.raises(InvalidUsage, match="no join token") as refused:
        await place.work(StubTrainer(), max_assignments=1)
    assert "not-one" not in refused.value.detail
    assert place.server.asked == []


async def test_a_worker_that_is_to_be_approved_asks_visibly_until_it_is_and_then_works(tmp_path: Path):
    server = a_server(training(1))
    pending = [problem("approval-pending", 403) for _ in range(3)]
    server.before["token"] = in_turn(*pending)
    place = Workplace(tmp_path, server)

    await place.work(StubTrainer(), max_assignments=1)

    assert len(place.told(Reconnecting)) == len(place.slept) == 3
    assert len(server.enrolments) == 1
    assert list(server.received) == ["a-1"]


async def test_an_identity_of_the_time_before_keys_needs_a_join_token(tmp_path: Path):
    before = {"schema_version": 1, "server_url": URL, "secret": "s" * 43, "worker_id": "w-1"}
    (tmp_path / "identity.json").write_text(json.dumps(before))
    place = Workplace(tmp_path, a_server(training(1)), join_token=None)

    with pytest.raises(InvalidUsage, match="a join token is needed"):
        await place.work(StubTrainer(), max_assignments=1)
    place.join_token = str(JOIN_TOKEN)
    await place.work(StubTrainer(), max_assignments=1)

    assert list(place.server.received) == ["a-1"]
    assert all(b"s" * 43 not in body for _, body in place.server.bodies)


# --- a server that has this worker no more -----------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("worker-expired", 403, WorkerExpired),
        ("assertion-refused", 401, AssertionRefused),
        ("unauthenticated", 401, Unauthenticated),
    ],
)
async def test_a_worker_that_is_gone_without_a_join_token_says_what_to_do(
    tmp_path: Path, code: str, status: int, error: type[Exception]
):
    place = await enrolled(tmp_path)
    place.server.before["token"] = in_turn(problem(code, status))
    place.join_token = None
    before = identity_of(place)

    with pytest.raises(error, match="enrolled as w-1: start it once with a fresh join token"):
        await place.work(StubTrainer(), max_assignments=1)
    assert identity_of(place) == before, "it may yet be told a join token"


async def test_a_worker_that_expired_enrols_again_with_a_join_token_under_the_same_key(tmp_path: Path):
    place = await enrolled(tmp_path, 2)
    place.server.before["token"] = in_turn(problem("worker-expired", 403))

    await place.work(StubTrainer(), max_assignments=1)

    first, second = place.server.enrolments
    assert first["public_key"] == second["public_key"]
    assert list(place.server.received) == ["a-1", "a-2"]


# --- another key -------------------------------------------------------------------------------


async def test_a_worker_that_is_told_to_has_another_key_from_then_on(tmp_path: Path):
    place = await enrolled(tmp_path, 2, 3)
    before = identity_of(place)

    place.rotate_key = True
    await place.work(StubTrainer(), max_assignments=1)
    after = identity_of(place)
    place.rotate_key = False
    await place.work(StubTrainer(), max_assignments=1)

    assert after.private_key != before.private_key
    assert after.next_private_key is None
    assert place.server.key == public_key_of(after.private_key)
    assert identity_of(place) == after
    assert list(place.server.received) == ["a-1", "a-2", "a-3"]
    assert len(place.server.enrolments) == 1


class _Killed(BaseException):
    """The process ends here."""


async def killed_while_rotating(place: Workplace, when: dict[str, object]) -> None:
    place.rotate_key = True
    when["rotate"] = in_turn(_Killed())
    with pytest.raises(_Killed):
        await place.work(StubTrainer(), max_assignments=1)
    place.rotate_key = False
    place.join_token = None


async def test_a_rotation_that_never_reached_the_server_leaves_the_old_key(tmp_path: Path):
    place = await enrolled(tmp_path, 2)
    before = identity_of(place)
    await killed_while_rotating(place, place.server.before)
    assert identity_of(place).next_private_key is not None

    await place.work(StubTrainer(), max_assignments=1)

    assert identity_of(place) == before
    assert list(place.server.received) == ["a-1", "a-2"]


async def test_a_rotation_whose_answer_nobody_heard_leaves_the_new_key(tmp_path: Path):
    place = await enrolled(tmp_path, 2)
    before = identity_of(place)
    await killed_while_rotating(place, place.server.after)
    after = identity_of(place)
    assert after.private_key == before.private_key

    await place.work(StubTrainer(), max_assignments=1)

    settled = identity_of(place)
    assert (settled.private_key, settled.next_private_key) == (after.next_private_key, None)
    assert place.server.key == public_key_of(settled.private_key)
    assert list(place.server.received) == ["a-1", "a-2"]


async def test_a_refusal_for_another_reason_costs_no_key(tmp_path: Path):
    """As from a proxy that sends a request twice: the second time the assertion was used before."""
    place = await enrolled(tmp_path, 2)
    await killed_while_rotating(place, place.server.after)
    both = identity_of(place)
    place.server.before["token"] = in_turn(problem("assertion-refused", 401))

    with pytest.raises(AssertionRefused):
        await place.work(StubTrainer(), max_assignments=1)
    assert identity_of(place) == both
    await place.work(StubTrainer(), max_assignments=1)

    assert place.server.key == public_key_of(identity_of(place).private_key)
    assert list(place.server.received) == ["a-1", "a-2"]


async def test_a_rotation_whose_answer_is_lost_on_the_way_is_settled_in_the_same_life(tmp_path: Path):
    place = await enrolled(tmp_path, 2)
    place.server.after["rotate"] = in_turn(ANSWER_LOST)
    place.rotate_key = True

    await place.work(StubTrainer(), max_assignments=1)

    settled = identity_of(place)
    assert settled.next_private_key is None
    assert place.server.key == public_key_of(settled.private_key)
    assert len(place.server.enrolments) == 1, "nobody enrolled again"
    assert list(place.server.received) == ["a-1", "a-2"]


async def test_a_worker_that_expired_with_a_rotation_under_way_enrols_again_with_the_key_the_server_has(
    tmp_path: Path,
):
    place = await enrolled(tmp_path, 2)
    await killed_while_rotating(place, place.server.after)
    expected = place.server.key
    expired = [problem("worker-expired", 403) for _ in range(2)]
    place.server.before["token"] = in_turn(*expired)
    place.join_token = str(JOIN_TOKEN)

    await place.work(StubTrainer(), max_assignments=1)

    assert place.server.enrolments[-1]["public_key"] == expected
    assert identity_of(place).next_private_key is None


async def test_a_next_key_that_was_kept_and_a_server_that_forgot_the_worker_leave_one_key(tmp_path: Path):
    place = await enrolled(tmp_path, 2)
    kept = identity_of(place).model_copy(update={"next_private_key": "n" * 43})
    save_identity(place.state_dir, kept)
    place.server.forget()

    await place.work(StubTrainer(), max_assignments=1)

    assert list(place.server.received) == ["a-1", "a-2"]
    assert public_key_of(identity_of(place).private_key) == _last_key(place.server)


def _last_key(server: SmallServer) -> object:
    return server.enrolments[-1]["public_key"]
