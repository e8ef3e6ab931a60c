# SPDX-License-Identifier: Apache-2.0
"""The worker's loop against a small honest server, with a stub in the trainer's seat."""

import asyncio
from pathlib import Path

import httpx
import numpy as np
import pytest

from protocol.codec import decode_message
from protocol.errors import InvalidTask, InvalidUsage, NotFinite, WorkerRevoked
from tests.worker.small_server import (
    ANSWER_LOST,
    PARAMS,
    a_server,
    evaluation,
    in_turn,
    message_of,
    problem,
    training,
)
from tests.worker.workplace import StubTrainer, Workplace
from worker.events import Enrolled, Evaluated, Reconnecting, Refused, Sent, Training


async def test_an_assignment_is_trained_declared_sent_and_settled(tmp_path: Path):
    place = Workplace(tmp_path, a_server(training()))

    await place.work(StubTrainer(), max_assignments=1)

    delta = decode_message(place.server.received["a-1"])["delta"]
    assert list(delta) == ["w", "b"]
    assert np.array_equal(delta["w"], np.ones((2, 3)))
    assert place.kept_step() == 3
    assert place.outbox() == []
    [sent] = place.told(Sent)
    assert isinstance(sent, Sent)
    assert sent.size_bytes == len(place.server.received["a-1"])
    assert place.told(Training) == [Training("run-1", 1, worker="mine")]


async def test_the_next_round_goes_on_from_the_kept_state_and_pulls_nothing_it_has(tmp_path: Path):
    place = Workplace(tmp_path, a_server(training(1), training(2)))

    await place.work(StubTrainer(), max_assignments=2)

    assert place.kept_step() == 6
    assert decode_message(place.server.received["a-2"])["delta"]["b"].tolist() == [4, 4]
    assert place.server.asked.count("tensors_of") == 1


async def test_killed_while_sending_the_restarted_worker_sends_the_same_bytes_untrained(tmp_path: Path):
    server = a_server(training())
    place = Workplace(tmp_path, server)
    sending = asyncio.Event()

    async def hang() -> None:
        sending.set()
        await asyncio.Event().wait()

    server.before["upload"] = hang
    life = asyncio.create_task(place.work(StubTrainer(), max_assignments=1))
    await sending.wait()
    life.cancel()
    with pytest.raises(asyncio.CancelledError):
        await life
    assert place.kept_step() is None

    del server.before["upload"]
    second = StubTrainer(gives=99.0)
    await place.work(second, max_assignments=1)

    assert second.trained == []
    first_bytes, second_bytes = (body for route, body in server.bodies if route == "upload")
    assert first_bytes == second_bytes == server.received["a-1"]
    assert place.kept_step() == 3
    assert place.outbox() == []


async def test_killed_after_the_server_had_it_the_restarted_worker_gets_the_same_receipt(tmp_path: Path):
    server = a_server(training())
    server.after["upload"] = in_turn(asyncio.CancelledError())
    place = Workplace(tmp_path, server)
    with pytest.raises(asyncio.CancelledError):
        await place.work(StubTrainer(), max_assignments=1)
    assert "a-1" in server.received
    assert place.kept_step() is None

    second = StubTrainer(gives=99.0)
    await place.work(second, max_assignments=1)

    assert second.trained == []
    assert server.asked.count("upload") == 1
    assert place.kept_step() == 3
    assert len(place.told(Sent)) == 1


async def test_a_lost_answer_to_the_upload_is_asked_for_again_and_not_sent_twice(tmp_path: Path):
    server = a_server(training())
    server.after["upload"] = in_turn(ANSWER_LOST)
    place = Workplace(tmp_path, server)
    trainer = StubTrainer()
    await place.work(trainer, max_assignments=1)

    assert trainer.trained == ["a-1"]
    assert server.asked.count("upload") == 1
    assert place.kept_step() == 3


async def test_an_update_too_late_for_its_round_is_dropped_and_the_worker_goes_on(tmp_path: Path):
    server = a_server(training(1), training(2))
    server.before["declare"] = in_turn(problem("round-closed"))
    place = Workplace(tmp_path, server)
    trainer = StubTrainer(works=lambda stop: server.settle("a-1"))

    await place.work(trainer, max_assignments=2)

    assert trainer.trained == ["a-1", "a-2"]
    assert place.told(Refused) == [Refused("round-closed", "because", worker="mine")]
    assert list(server.received) == ["a-2"]
    assert server.declined == {}, "the server has settled it already"
    assert decode_message(server.received["a-2"])["delta"]["b"].tolist() == [1, 1], (
        "the state of an update that was not received is not kept"
    )


@pytest.mark.parametrize("code", ["too-stale", "run-ended", "update-conflict", "assignment-declined"])
async def test_whatever_else_settled_the_assignment_drops_the_update_too(tmp_path: Path, code: str):
    server = a_server(training(1))
    server.before["upload"] = in_turn(problem(code))
    place = Workplace(tmp_path, server)

    await place.work(StubTrainer(), max_assignments=1)

    assert place.outbox() == []
    assert place.refusals() == [code]


async def test_training_that_diverges_declines_with_the_reason(tmp_path: Path):
    place = Workplace(tmp_path, a_server(training(1)))

    await place.work(StubTrainer(fails_with=NotFinite("loss of step 2")), max_assignments=1)

    assert place.server.declined == {"a-1": "not-finite: loss of step 2"}
    assert place.outbox() == []


async def test_a_reason_that_no_server_takes_is_made_one_that_it_does(tmp_path: Path):
    place = Workplace(tmp_path, a_server(training(1)))

    await place.work(StubTrainer(fails_with=InvalidTask("a zero \0 and a bell \a")), max_assignments=1)

    assert place.server.declined == {"a-1": "invalid-task: a zero \ufffd and a bell \ufffd"}


async def test_a_delta_that_is_not_finite_never_leaves_the_worker(tmp_path: Path):
    place = Workplace(tmp_path, a_server(training(1)))

    await place.work(StubTrainer(gives=float("nan")), max_assignments=1)

    assert place.server.declined == {"a-1": "not-finite: delta/w: holds NaN or an infinity"}
    assert "declare" not in place.server.asked


async def test_an_update_the_server_finds_wrong_is_declined_so_that_it_is_not_trained_for_ever(
    tmp_path: Path,
):
    server = a_server(training(1))
    server.before["upload"] = in_turn(problem("outside-bound", 422))
    place = Workplace(tmp_path, server)

    await place.work(StubTrainer(), max_assignments=1)

    assert server.declined == {"a-1": "outside-bound: because"}
    assert place.outbox() == []


async def test_an_assignment_for_another_task_is_declined_untrained(tmp_path: Path):
    place = Workplace(tmp_path, a_server(training(task="other")))
    trainer = StubTrainer()

    await place.work(trainer, max_assignments=1)

    assert trainer.trained == []
    assert place.server.declined == {"a-1": "invalid-task: this worker serves digits, not other"}


async def test_tensors_that_are_not_what_they_are_called_decline_the_assignment(tmp_path: Path):
    server = a_server(training(1))
    server.tensors = dict.fromkeys(server.tensors, message_of(PARAMS)[:-1] + b"\xff")
    place = Workplace(tmp_path, server)
    trainer = StubTrainer()

    await place.work(trainer, max_assignments=1)

    assert trainer.trained == []
    assert server.declined["a-1"].startswith("digest-mismatch: ")
    assert server.asked.count("tensors_of") == 4


@pytest.mark.parametrize("route", ["enrol", "next", "tensors_of", "declare", "upload"])
async def test_a_server_that_is_away_for_a_moment_costs_a_pause_and_no_training(tmp_path: Path, route: str):
    server = a_server(training(1))
    server.before[route] = in_turn(httpx.ConnectError("refused"))
    place = Workplace(tmp_path, server)
    trainer = StubTrainer()

    await place.work(trainer, max_assignments=1)

    assert trainer.trained == ["a-1"]
    assert "a-1" in server.received
    assert len(place.told(Reconnecting)) == 1
    assert place.slept == [0.25]


async def test_a_server_that_stays_away_is_asked_ever_more_rarely(tmp_path: Path):
    server = a_server(training(1))
    server.before["next"] = in_turn(*[httpx.ConnectError("refused")] * 8)
    place = Workplace(tmp_path, server)

    await place.work(StubTrainer(), max_assignments=1)

    assert place.slept == [0.25, 0.5, 1, 2, 4, 8, 15, 15]


async def test_a_long_absence_before_an_assignment_makes_no_later_pause_longer(tmp_path: Path):
    server = a_server(training(1))
    server.before["next"] = in_turn(*[httpx.ConnectError("refused")] * 5)
    server.before["declare"] = in_turn(httpx.ConnectError("refused"))
    place = Workplace(tmp_path, server)

    await place.work(StubTrainer(), max_assignments=1)

    assert place.slept == [0.25, 0.5, 1, 2, 4, 0.25]


async def test_the_pause_the_server_asks_for_is_kept(tmp_path: Path):
    server = a_server(training(1))
    server.before["declare"] = in_turn(problem("not-ready", 503, {"Retry-After": "7"}))
    place = Workplace(tmp_path, server)

    await place.work(StubTrainer(), max_assignments=1)

    assert place.slept == [7.25]


@pytest.mark.parametrize("route", ["next", "tensors_of", "declare", "upload"])
async def test_a_worker_that_is_one_too_many_comes_again_when_it_was_told_to(tmp_path: Path, route: str):
    server = a_server(training(1))
    server.before[route] = in_turn(problem("too-many-uploads", 429, {"Retry-After": "7"}))
    place = Workplace(tmp_path, server)

    await place.work(StubTrainer(), max_assignments=1)

    assert place.slept == [7.25]
    assert "a-1" in server.received


async def test_an_evaluator_reports_the_metrics_of_the_version(tmp_path: Path):
    place = Workplace(tmp_path, a_server(evaluation(4)))

    await place.work(StubTrainer(), max_assignments=1)

    assert place.server.metrics == [{"version": 4, "num_examples": 7, "metrics": {"test_accuracy": 0.5}}]
    assert place.told(Evaluated) == [Evaluated(4, {"test_accuracy": 0.5}, worker="mine")]


async def test_a_version_that_cannot_be_evaluated_is_not_tried_in_a_tight_circle(tmp_path: Path):
    place = Workplace(tmp_path, a_server(evaluation(4)))

    await place.work(StubTrainer(fails_with=InvalidTask("other data")), max_assignments=3)

    assert place.refusals() == ["invalid-task"] * 3
    assert place.slept == [0.5, 1, 2]


async def test_a_version_whose_loss_is_not_finite_is_reported_without_metrics(tmp_path: Path):
    place = Workplace(tmp_path, a_server(evaluation(4)))

    await place.work(StubTrainer(fails_with=NotFinite("loss")), max_assignments=1)

    assert place.server.metrics == [{"version": 4, "num_examples": 1, "metrics": {}}]
    assert not place.told(Evaluated)


async def test_a_revoked_worker_ends_with_that_error(tmp_path: Path):
    server = a_server(training(1))
    server.before["next"] = in_turn(problem("worker-revoked", 403))
    place = Workplace(tmp_path, server)
    with pytest.raises(WorkerRevoked):
        await place.work(StubTrainer(), max_assignments=1)


async def test_a_lost_answer_to_the_enrolment_repeats_it_with_the_same_key(tmp_path: Path):
    server = a_server(training(1))
    server.after["enrol"] = in_turn(ANSWER_LOST)
    place = Workplace(tmp_path, server)
    await place.work(StubTrainer(), max_assignments=1)

    assert len(server.enrolments) == 2
    assert server.enrolments[0]["public_key"] == server.enrolments[1]["public_key"]
    assert server.enrolments[0]["tasks"] == ["digits"]


async def test_a_restarted_worker_needs_no_token_and_does_not_enrol_again(tmp_path: Path):
    server = a_server(training(1), training(2))
    place = Workplace(tmp_path, server)
    await place.work(StubTrainer(), max_assignments=1)

    place.join_token = None
    await place.work(StubTrainer(), max_assignments=1)

    assert len(server.enrolments) == 1
    assert place.told(Enrolled) == [Enrolled("w-1", worker="mine")] * 2
    assert list(server.received) == ["a-1", "a-2"]


async def test_a_first_start_without_a_token_says_what_is_missing(tmp_path: Path):
    place = Workplace(tmp_path, a_server(), join_token=None)
    with pytest.raises(InvalidUsage, match="join token"):
        await place.work(StubTrainer(), max_assignments=1)
