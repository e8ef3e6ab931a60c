# SPDX-License-Identifier: Apache-2.0
"""Workers on task `digits`, each with two shards of it, for tests that are all of them themselves."""

from collections.abc import Iterator
from pathlib import Path

from worker.options import WorkerOptions
from worker.tasks import load_task
from worker.tasks.base import Examples, Task
from worker.tasks.partition import parse_partition


def a_cohort(
    url: str, token: str, directory: Path, count: int, max_assignments: int | None
) -> Iterator[tuple[WorkerOptions, Task, Examples]]:
    """w0, w1, …: what each is told, the task, and its part of the data."""
    task = load_task("digits", None)
    examples = task.training_data()
    partition = parse_partition("shards:2")
    for index in range(count):
        options = WorkerOptions(
            server_url=url,
            join_token=token,
            name=f"w{index}",
            state_dir=directory / f"w{index}",
            task="digits",
            max_assignments=max_assignments,
        )
        yield options, task, examples.batch(partition.indices(examples.targets.numpy(), index, count, 0))
