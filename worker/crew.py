# SPDX-License-Identifier: Apache-2.0
"""Who trains the members of a swarm: a trainer for each, or one that stacks many members' models.

torch is imported inside the functions, as in `trainers`.
"""

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from protocol.algorithms import algorithm_named
from protocol.codec import Bundle
from protocol.errors import InvalidTask, NotFinite
from protocol.messages import Assignment
from worker.gathering import Part, TrainsTogether
from worker.lasting import lasting
from worker.options import SwarmOptions
from worker.tasks import load_task
from worker.trainers import Trains, build_trainers, divided
from worker.update import Trained

if TYPE_CHECKING:
    import torch

    from worker.stacked import StackedTrainer
    from worker.tasks.base import Task

MOST_ON_CUDA = 1024
"""Members of a stack: what they give is in the host's memory at once."""


@dataclass(frozen=True)
class Apart:
    """A trainer for each member, and one for the evaluator, if there is one."""

    trainers: Sequence[Trains]
    why: str | None
    """Why they are not stacked, where they were to be."""


@dataclass(frozen=True)
class Together:
    """One trainer for all members: it holds one model and one copy of the data, and the rows of each."""

    trainer: TrainsTogether
    evaluator: Trains


def stack_size(asked: int | None, device_type: str, members: int) -> int:
    """How many members a stack has at most; 1: they train one by one.

    Args:
        asked: None: what suits the device. On a CPU that is 1: an assignment gives the same bits then,
            whoever else is trained, and a stack of models that are not small gains little there.
    """
    wanted = asked or (MOST_ON_CUDA if device_type == "cuda" else 1)
    return min(wanted, members)


def build_crew(options: SwarmOptions) -> tuple[str, Apart | Together]:
    """Load the task once; give its name, and who trains the members.

    Slow: run it in a thread.

    Raises:
        InvalidTask: the task cannot be loaded, its code failed, or stacking was asked for and is impossible.
        DataUnavailable, DeviceUnavailable, InvalidUsage: the choice cannot be met here.
    """
    with lasting():
        from worker.machine import choose_device

    device = choose_device(options.device)
    stack, why = stack_size(options.stack, device.type, options.num_workers), None
    if stack > 1:
        try:
            return _together(options, device, stack)
        except InvalidTask as error:
            if options.stack is not None:
                raise InvalidTask(
                    f"{error.detail} (with two workers stacked: --stack 1 trains one by one)"
                ) from error
            why = error.detail
    parts = [*options.indices, *([] if options.evaluator_token is None else [None])]
    name, trainers = build_trainers(options.member(options.first_index), parts)
    return name, Apart(trainers, why)


def _together(options: SwarmOptions, device: "torch.device", stack: int) -> tuple[str, Together]:
    import torch

    from worker.stacked import StackedTrainer
    from worker.tasks.failures import as_invalid_task
    from worker.training import Trainer

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    task = load_task(options.task, options.data_dir)
    with as_invalid_task(task.name, device):
        everything = task.training_data()
        rows = divided(task, everything, options.member(options.first_index), options.indices)
        if rows is None:
            rows = [np.arange(len(everything))] * options.num_workers
    lanes = options.parallel_training
    trainer = StackedTrainer(task, everything, rows, device, stack=stack, threads=lanes)
    _try_two(task, trainer, [number for number, own in enumerate(rows) if len(own)])
    return task.name, Together(_Stacks(trainer, lanes), Trainer(task, None, device))


class _Stacks:
    """A stacked trainer, as a gathering asks for it."""

    def __init__(self, trainer: "StackedTrainer", lanes: int) -> None:
        self._trainer = trainer
        self._lanes = lanes

    @property
    def most(self) -> int:
        return self._trainer.stack * self._lanes

    def train(
        self, parts: Sequence[Part], state: Mapping[str, Bundle], stop: threading.Event
    ) -> Sequence[Trained]:
        from worker.stacked import Job

        jobs = [Job(part.member, part.assignment, part.kept) for part in parts]
        return self._trainer.train(jobs, state, stop)


def _try_two(task: "Task", trainer: "StackedTrainer", holders: Sequence[int]) -> None:
    """Take one step with two members stacked: what cannot be stacked is known before anybody enrols.

    Raises:
        InvalidTask: the model cannot be stacked, or fails by itself.
    """
    from worker.stacked import Job
    from worker.training import initial_parameters

    jobs = [Job(member, _one_step(task.name, slot), None) for slot, member in enumerate(holders[:2])]
    with suppress(NotFinite):  # of steps that nobody has chosen
        trainer.train(jobs, {"params": initial_parameters(task, 0)})


def _one_step(task_name: str, slot: int) -> Assignment:
    row = algorithm_named("fedavg")
    values = row.parse({})
    return Assignment(
        assignment_id="trial",
        run_id="trial",
        round=1,
        version=0,
        slot=slot,
        phase="train",
        task=task_name,
        tensors={},
        bundles=values.bundles_wanted(0),
        encodings={},
        optimizer=row.optimizer,
        settings=values.optimizer_settings(1),
        local_steps=1,
        batch_size=1,
        seed=slot,
        deadline_ms=0,
    )
