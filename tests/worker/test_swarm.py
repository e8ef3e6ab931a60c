# SPDX-License-Identifier: Apache-2.0
"""A swarm is many ordinary workers; how it runs against a real server is in `tests/system`."""

from pathlib import Path

import pytest

from protocol.errors import InvalidTask, InvalidUsage
from worker.crew import MOST_ON_CUDA, stack_size
from worker.events import AgentEvent, Failed
from worker.options import SwarmOptions
from worker.swarm import run_swarm


def a_swarm(state_dir: Path, **choices: int | str | None) -> SwarmOptions:
    defaults = {"server_url": "http://127.0.0.1:9", "join_token": None, "task": "digits", "num_workers": 3}
    return SwarmOptions(state_dir=state_dir, threads=1, device="cpu", **{**defaults, **choices})  # type: ignore[arg-type]  # a test's own defaults


def test_names_sort_as_the_parts_of_the_data_do(tmp_path: Path):
    options = a_swarm(tmp_path, num_workers=12, first_index=98)
    members = [options.member(index) for index in options.indices]

    assert members[0].name == "swarm-00098"
    assert [member.name for member in members] == sorted(member.name for member in members)
    assert [member.partition_index for member in members] == list(range(98, 110))
    assert {member.partition_of for member in members} == {110}


def test_every_worker_has_a_state_directory_of_its_own(tmp_path: Path):
    options = a_swarm(tmp_path)
    places = {options.member(index).state_dir for index in options.indices}
    assert len(places | {options.evaluator().state_dir}) == 4


async def test_one_workers_failure_is_told_with_its_name_and_ends_the_swarm_with_that_error(tmp_path: Path):
    events: list[AgentEvent] = []

    with pytest.raises(InvalidUsage, match=r"swarm-0000\d has not enrolled yet: a join token is needed"):
        await run_swarm(a_swarm(tmp_path), events.append)

    assert isinstance(events[0], Failed)
    assert events[0].worker.startswith("swarm-0000")


async def test_a_task_that_cannot_be_loaded_is_no_failure_of_every_single_worker(tmp_path: Path):
    (tmp_path / "task.py").write_text("raise LookupError('nothing here')")
    events: list[AgentEvent] = []

    with pytest.raises(InvalidTask, match="nothing here"):
        await run_swarm(a_swarm(tmp_path, task=str(tmp_path / "task.py")), events.append)

    assert events == []


async def test_a_swarm_of_nobody_is_refused(tmp_path: Path):
    with pytest.raises(InvalidUsage, match="at least one worker"):
        await run_swarm(a_swarm(tmp_path, num_workers=0), lambda event: None)


async def test_a_stack_of_nobody_is_refused(tmp_path: Path):
    with pytest.raises(InvalidUsage, match="a stack needs at least one worker"):
        await run_swarm(a_swarm(tmp_path, stack=0), lambda event: None)


def test_workers_are_stacked_on_cuda_and_elsewhere_where_that_is_asked_for():
    assert stack_size(None, "cpu", 1000) == stack_size(None, "mps", 1000) == 1
    assert stack_size(None, "cuda", 10_000) == MOST_ON_CUDA
    assert stack_size(64, "cpu", 1000) == 64
    assert stack_size(64, "cuda", 5) == 5
