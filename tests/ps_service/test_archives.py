# SPDX-License-Identifier: Apache-2.0
"""A run that comes from an archive: its history is what it was, and it goes on where it stood."""

import json

import pytest

from protocol.codec import digest_of
from protocol.messages import RunStatus, parse
from protocol.run_archive import RunArchive
from ps_service.archives import state_after
from tests.ps_service.archived import a_history, export, hold_a_round, measure, state_of, take, versions_of
from tests.ps_service.conftest import ManualClock


@pytest.fixture
async def other(start_server, tmp_path):
    """Another server, on another disk and at another time, with nothing on it."""
    (tmp_path / "other").mkdir()
    return await start_server(directory=tmp_path / "other", clock=ManualClock(77_000_000))


# --- what comes in is what went out ---------------------------------------------------------------


async def test_an_ended_run_is_shown_as_it_was_and_exported_as_it_was(server, other, tmp_path):
    run_id, _ = await a_history(server, retention={"last": 10})
    await measure(server, await server.enrol("evaluator", role="evaluator"), run_id, 0.25)
    await server.operator.post(f"/v1/runs/{run_id}/cancel")
    before = await server.show(run_id)
    await export(server, run_id, tmp_path / "run.tar", "all")

    run = await take(other, tmp_path / "run.tar")
    assert run.run_id != run_id
    assert run == before.model_copy(update={"run_id": run.run_id, "members": 0})
    assert (run.status, run.reason) == (RunStatus.CANCELLED, "cancelled by the operator")
    rounds = await server.rounds(run_id)
    assert await other.rounds(run.run_id) == rounds
    assert [round_["status"] for round_ in rounds] == ["abandoned", *["committed"] * 3, "abandoned"]
    assert rounds[3]["metrics"] == {"train_loss": 2.5, "train_accuracy": 0.1, "test_accuracy": 0.25}
    assert await versions_of(other, run.run_id) == await versions_of(server, run_id)
    assert (await other.operator.post(f"/v1/runs/{run.run_id}/resume")).json()["code"] == "run-ended"

    await export(other, run.run_id, tmp_path / "again.tar", "all")
    assert (tmp_path / "again.tar").read_bytes() == (tmp_path / "run.tar").read_bytes()


async def test_every_tensor_that_came_with_it_can_be_read_and_no_other(server, other, tmp_path):
    run_id, _ = await a_history(server, retention={"last": 10})
    await export(server, run_id, tmp_path / "run.tar", (1, 3))
    run = await take(other, tmp_path / "run.tar")
    for version in await versions_of(other, run.run_id):
        kept = version["version"] in (1, 3)
        assert version["collected"] is not kept
        for digest in version["tensors"].values():
            path = f"tensors/{digest}"
            here = await other.operator.get(f"/v1/runs/{run.run_id}/{path}")
            there = await server.operator.get(f"/v1/runs/{run_id}/{path}")
            assert here.content == there.content or here.json()["code"] == "not-found"
            if kept:
                assert digest_of([here.content]) == digest


async def test_where_a_run_stands_follows_from_its_rounds(server, other, tmp_path):
    """Compared with the machine's own state, which no archive holds."""
    run_id, _ = await a_history(server)
    await server.operator.post(f"/v1/runs/{run_id}/pause")
    await export(server, run_id, tmp_path / "run.tar")
    run = await take(other, tmp_path / "run.tar")
    here, there = await state_of(other, run.run_id), await state_of(server, run_id)
    assert there.round_open
    assert len(there.round_lengths_ms) == 3
    for field in ("status", "version", "round_lengths_ms", "started_ms", "abandoned_in_a_row", "reason"):
        assert getattr(here, field) == getattr(there, field), field
    assert (here.round, here.round_open) == (there.round - 1, False)


# --- it goes on -----------------------------------------------------------------------------------


async def test_a_run_that_goes_on_is_imported_as_paused_without_its_open_round(server, other, tmp_path):
    run_id, _ = await a_history(server)
    await export(server, run_id, tmp_path / "run.tar")
    run = await take(other, tmp_path / "run.tar")
    rounds = await server.rounds(run_id)
    assert rounds[-1]["status"] == "collecting"
    assert await other.rounds(run.run_id) == rounds[:-1]
    assert (run.status, run.round, run.version, run.members) == (RunStatus.PAUSED, 4, 3, 0)


@pytest.mark.parametrize("encodings", [{}, {"params": "bf16"}])
async def test_a_resumed_import_takes_new_workers_and_makes_the_versions_there_would_have_been(
    server, other, tmp_path, encodings
):
    run_id, cohort = await a_history(server, encodings=encodings)
    await export(server, run_id, tmp_path / "run.tar")
    run = await take(other, tmp_path / "run.tar")
    newcomers = [await other.enrol(f"worker-{number}") for number in range(2)]
    for worker in newcomers:
        assert (await worker.ask()).status_code == 204, "it is paused"
    await other.operator.post(f"/v1/runs/{run.run_id}/resume")

    for worker, known in zip(newcomers, cohort, strict=True):
        here, there = await worker.assignment(), await known.assignment()
        own = ("assignment_id", "run_id", "deadline_ms")
        assert here == there | {name: here[name] for name in own}, "the same round, slot, seed and tensors"
    for at, workers in ((server, cohort), (other, newcomers)):
        await hold_a_round(at, workers, value=0.003)
    assert (await other.show(run.run_id)).tensors == (await server.show(run_id)).tensors
    last = (await other.rounds(run.run_id))[-2]
    assert (last["round"], last["version"]) == (5, 4)
    assert last["metrics"] == {"train_loss": 2.5, "train_accuracy": 0.1}


async def test_abandoned_rounds_before_the_export_count_after_it(server, other, tmp_path):
    run_id, _ = await a_history(server, rounds_held=0, max_abandoned_rounds=2)
    await export(server, run_id, tmp_path / "run.tar")
    run = await take(other, tmp_path / "run.tar")
    await other.operator.post(f"/v1/runs/{run.run_id}/resume")
    workers = [await other.enrol(f"worker-{number}") for number in range(2)]
    for worker in workers:
        await worker.ask()
    assignment = await workers[0].assignment()
    url = f"/v1/assignments/{assignment['assignment_id']}/decline"
    await workers[0].http.post(url, json={"reason": "busy"})
    ended = await other.show(run.run_id)
    assert (ended.status, ended.round) == (RunStatus.FAILED, 2)
    assert "2 rounds in a row" in ended.reason


async def test_an_evaluator_is_offered_the_versions_that_came_and_adds_to_what_was_known(
    server, other, tmp_path
):
    run_id, _ = await a_history(server)
    await export(server, run_id, tmp_path / "run.tar")
    run = await take(other, tmp_path / "run.tar")
    evaluator = await other.enrol("evaluator", role="evaluator")
    offered = await evaluator.assignment()
    assert (offered["run_id"], offered["version"]) == (run.run_id, 3)
    await measure(other, evaluator, run.run_id, 0.75)
    assert (await evaluator.ask()).status_code == 204, "the versions before it are not here"
    metrics = (await other.rounds(run.run_id))[-1]["metrics"]
    assert metrics == {"train_loss": 2.5, "train_accuracy": 0.1, "test_accuracy": 0.75}


async def test_a_best_version_that_was_measured_elsewhere_outlives_the_newer_ones(server, other, tmp_path):
    best = {"last": 1, "best": {"metric": "test_accuracy"}}
    run_id, workers = await a_history(server, rounds_held=1, retention=best)
    await measure(server, await server.enrol("evaluator", role="evaluator"), run_id, 0.75)
    await hold_a_round(server, workers)
    await export(server, run_id, tmp_path / "run.tar", "all")
    run = await take(other, tmp_path / "run.tar")
    await other.service.housekeeping.tidy(run.run_id)
    assert [each["version"] for each in await versions_of(other, run.run_id) if not each["collected"]] == [
        1,
        2,
    ]


async def test_a_waiting_worker_hears_of_an_import_at_once(server, other, tmp_path):
    run_id, _ = await a_history(server)
    await export(server, run_id, tmp_path / "run.tar")
    worker = await other.enrol("worker-0")
    with other.service.bell.listen(["task/digits"]) as rung:
        run = await take(other, tmp_path / "run.tar")
        assert rung.is_set()
    await worker.ask()
    assert (await other.show(run.run_id)).members == 1


def test_lengths_of_rounds_are_remembered_as_far_back_as_the_machine_looks():
    def a_round(number):
        times = {"opened_ms": 100 * number, "ended_ms": 100 * number + number, "deadline_ms": 0}
        counts = {"invited": 1, "admitted": 1, "declined": 0, "bytes_up": 0, "bytes_down": 0}
        numbers = {"round": number, "base_version": number - 1, "version": number, "status": "committed"}
        return numbers | times | counts

    spec = {"name": "n", "task": "t", "algorithm": "fedavg", "model": [{"name": "w", "shape": [1]}]}
    spec |= {"params_digest": "0" * 64, "rounds": 99, "cohort_size": 1, "quorum": 1}
    versions = [{"version": n, "tensors": {"params": "0" * 64}, "created_ms": 0} for n in range(31)]
    rounds = [a_round(number) for number in range(1, 31)]
    document = {"spec": spec, "status": "waiting", "created_ms": 0, "rounds": rounds, "versions": versions}
    state = state_after(parse(RunArchive, json.dumps(document | {"included": []})))
    assert state.round_lengths_ms == tuple(range(11, 31))
    assert (state.status, state.started_ms, state.round, state.version) == (RunStatus.PAUSED, 100, 30, 30)
