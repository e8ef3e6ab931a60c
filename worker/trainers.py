# SPDX-License-Identifier: Apache-2.0
"""What a trainer is and how one is built: the one place where the network half meets the numerical half.

torch is imported inside the function, so that importing the network half stays cheap.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from protocol.codec import Bundle
from protocol.errors import DeviceUnavailable
from protocol.messages import Assignment
from worker.lasting import lasting
from worker.local_state import Kept
from worker.options import WorkerOptions
from worker.tasks import load_task, name_in_menu
from worker.tasks.partition import Indices, parse_partition
from worker.update import Trained

if TYPE_CHECKING:
    from worker.tasks.base import Examples, Task
    from worker.training import Trainer


class Trains(Protocol):
    """The numerical half of a worker; synchronous, called in a thread, one call at a time.

    Once `stop` is set, both raise `patience.Stopped` as soon as they can.
    """

    def train(
        self,
        assignment: Assignment,
        state: Mapping[str, Bundle],
        kept: Kept | None,
        stop: threading.Event | None = None,
    ) -> Trained: ...

    def evaluate(
        self, state: Mapping[str, Bundle], stop: threading.Event | None = None
    ) -> tuple[int, dict[str, float]]: ...


def name_before_loading(options: WorkerOptions) -> str | None:
    """Give the task's name, known at once if it is of the menu; None for a user's own file.

    Raises:
        InvalidTask, InvalidUsage: what is chosen does not exist.
    """
    if options.partition is not None:
        parse_partition(options.partition)
    return name_in_menu(options.task)


def chosen_device(options: WorkerOptions) -> str:
    """What the trainers that are built train on, by its name.

    Raises:
        DeviceUnavailable: the choice cannot be met here.
    """
    with lasting():
        from worker.machine import choose_device, device_name

    device = choose_device(options.device)
    try:
        return device_name(device)
    except RuntimeError as error:
        raise DeviceUnavailable(f"device {device}: {type(error).__name__} when asked for its name") from None


def build_trainers(options: WorkerOptions, parts: Sequence[int | None]) -> tuple[str, list["Trainer"]]:
    """Load the task once; give its name, and a trainer for each of these parts of its data, in order.

    Slow: run it in a thread.

    Args:
        parts: None makes a trainer without training data, for an evaluator.

    Raises:
        InvalidTask: the task cannot be loaded, or its code failed.
        DataUnavailable, DeviceUnavailable, InvalidUsage: the choice cannot be met here.
    """
    with lasting():
        import torch

        from worker.machine import choose_device
        from worker.tasks.failures import as_invalid_task
        from worker.training import Trainer

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    task = load_task(options.task, options.data_dir)
    with as_invalid_task(task.name, device):
        held = _examples_of(task, options, [part for part in parts if part is not None])
        numerics = options.numerics
        trainers = [Trainer(task, None if p is None else held[p], device, numerics) for p in parts]
        return task.name, trainers


def _examples_of(task: "Task", options: WorkerOptions, parts: Sequence[int]) -> dict[int, "Examples"]:
    """The examples that each of these parts holds; the data are read and divided once."""
    if not parts:
        return {}
    everything = task.training_data()
    rows_of_each = divided(task, everything, options, parts)
    if rows_of_each is None:
        return dict.fromkeys(parts, everything)
    return {part: everything.batch(rows) for part, rows in zip(parts, rows_of_each, strict=True)}


def divided(
    task: "Task", everything: "Examples", options: WorkerOptions, parts: Sequence[int]
) -> list[Indices] | None:
    """Which of the examples each of these parts holds, in order; None: each holds all of them.

    Raises:
        InvalidUsage: they cannot be divided so.
    """
    if options.partition is None:
        return None
    partition = parse_partition(options.partition)
    groups = task.groups() if partition.divides == "groups" else None
    return partition.indices_of_each(
        everything.targets.numpy(), parts, options.partition_of, options.partition_seed, groups
    )
