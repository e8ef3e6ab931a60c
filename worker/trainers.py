# SPDX-License-Identifier: Apache-2.0
"""Builds trainers from what a user chose: the one place where the network half meets the numerical half.

torch is imported inside the function, so that importing the network half stays cheap.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from worker.options import WorkerOptions

if TYPE_CHECKING:
    from worker.training import Trainer


def build_trainers(options: WorkerOptions, parts: Sequence[int | None]) -> tuple[str, list["Trainer"]]:
    """Load the task once; give its name, and a trainer for each of these parts of its data, in order.

    Slow: run it in a thread.

    Args:
        parts: None makes a trainer without training data, for an evaluator.

    Raises:
        InvalidTask, DataUnavailable, DeviceUnavailable, InvalidUsage: the choice cannot be met here.
    """
    import torch

    from worker.tasks import load_task
    from worker.tasks.partition import parse_partition
    from worker.training import Trainer, choose_device

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    task = load_task(options.task, options.data_dir)
    everything = task.training_data() if any(part is not None for part in parts) else None
    partition = None if options.partition is None else parse_partition(options.partition)

    trainers = []
    for part in parts:
        examples = None if part is None else everything
        if part is not None and everything is not None and partition is not None:
            targets = everything.targets.numpy()
            examples = everything.batch(
                partition.indices(targets, part, options.partition_of, options.partition_seed)
            )
        trainers.append(Trainer(task, examples, device))
    return task.name, trainers
