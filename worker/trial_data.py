# SPDX-License-Identifier: Apache-2.0
"""The data of an experiment's trial: divided among workers, with examples held out to tune by.

What is held out goes to no worker. The test examples are the task's own; nothing is chosen by them.
"""

import hashlib
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from protocol.codec import Bundle
from protocol.errors import InvalidTask
from protocol.messages import Assignment
from worker.draws import draws_by_itself, torch_seeded
from worker.evaluation import measure
from worker.local_state import Kept
from worker.model import ExchangedParameters
from worker.stacked import StackedTrainer
from worker.tasks import load_task
from worker.tasks.base import Examples, Task
from worker.tasks.failures import as_invalid_task
from worker.tasks.held_out import hold_out
from worker.tasks.likelihood import likelihood_named
from worker.tasks.partition import Indices, parse_partition
from worker.training import FROZEN_SEED, Trained, Trainer


@dataclass(frozen=True)
class TrialData:
    """A task's examples: those to train on, whose rows are dealt to workers, and those to evaluate on."""

    task: Task
    training: Examples
    rows_of_each: tuple[Indices, ...]
    """For each worker, its rows of `training`, ascending."""
    validation: Examples
    test: Examples

    @classmethod
    def divided(
        cls,
        task_name: str,
        data_dir: Path | None,
        partition: str,
        workers: int,
        seed: int,
        *,
        validation: int,
        validation_seed: int,
    ) -> "TrialData":
        """Load a task, hold `validation` examples out, and divide the rest by `partition` and `seed`.

        Raises:
            InvalidTask: the task cannot be loaded, or its code failed.
            DataUnavailable, InvalidUsage: the data cannot be had, or not be divided so.
        """
        task = load_task(task_name, data_dir)
        with as_invalid_task(task.name):
            everything, test, groups = task.training_data(), task.evaluation_data(), task.groups()
        rows, held_out = hold_out(len(everything), validation, validation_seed)
        training = everything.batch(rows)
        parts = parse_partition(partition).indices_of_each(
            training.targets.numpy(),
            range(workers),
            workers,
            seed,
            None if groups is None else groups[rows],
        )
        return cls(task, training, tuple(parts), everything.batch(held_out), test)

    @cached_property
    def digest(self) -> str:
        """Sixteen hex digits of SHA-256 over all examples, in order: results name what they are of.

        It does not depend on how the examples are divided, but on which are held out.
        """
        sha256 = hashlib.sha256()
        for examples in (self.training, self.validation, self.test):
            for tensor in (examples.inputs, examples.targets):
                sha256.update(tensor.contiguous().numpy().data)
        return sha256.hexdigest()[:16]

    def with_flipped_labels(self, workers: Iterable[int]) -> "TrialData":
        """The same, but for these workers' training examples: label y is the y-th from the other end.

        Raises:
            InvalidTask: the targets are no labels.
        """
        targets = self.training.targets.clone()
        if targets.is_floating_point():
            raise InvalidTask(f"task {self.task.name}: its targets are no labels that could be flipped")
        for worker in workers:
            rows = torch.from_numpy(np.asarray(self.rows_of_each[worker], dtype=np.int64))
            targets[rows] = self.training.targets.max() - targets[rows]
        return replace(self, training=Examples(self.training.inputs, targets))

    def stacked_trainer(self, device: torch.device, *, stack: int, threads: int) -> StackedTrainer:
        return StackedTrainer(
            self.task, self.training, self.rows_of_each, device, stack=stack, threads=threads
        )

    def trains_side_by_side(self, device: torch.device) -> bool:
        """Whether trainers at work together give what each gives alone: not where the model draws."""
        with as_invalid_task(self.task.name, device):
            model = self.task.model().to(device)
            return not draws_by_itself(model, self.training.inputs[:1].to(device))

    def trainers(self, device: torch.device) -> list[Trainer]:
        """One for each worker."""
        return [Trainer(self.task, self.training.batch(rows), device) for rows in self.rows_of_each]


class TrialEvaluator:
    """Measures versions on validation and test examples; the versions come one by one, in their order.

    With `iterate_average` it is ā ← ā + 9/(r+8)·(θ − ā) that is measured in place of θ, r = 1, 2, … counting
    the versions: a weighted mean of all of them, in which the newest weighs most.
    """

    def __init__(self, data: TrialData, device: torch.device, *, iterate_average: bool) -> None:
        self._likelihood = likelihood_named(data.task.likelihood)
        with as_invalid_task(data.task.name, device), torch_seeded(FROZEN_SEED, device):
            self._model = data.task.model().to(device)
        self._exchanged = ExchangedParameters.of(self._model)
        self._parts = {"validation": data.validation.to(device), "test": data.test.to(device)}
        self._require_accuracy(data.task)
        self._iterate_average = iterate_average
        self._average: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]] = {}
        self._versions = 0
        self._newest: Bundle = {}

    def _require_accuracy(self, task: Task) -> None:
        outputs = self._model.eval()(self._parts["test"].inputs[:1])
        if "accuracy" not in self._likelihood.metrics(outputs.detach(), self._parts["test"].targets[:1]):
            raise InvalidTask(f"task {task.name}: its likelihood, {task.likelihood}, tells no accuracy")

    def note(self, params: Bundle) -> None:
        """Take the next version's parameters in, unless they are those of the one before.

        They are where a round of several only gathers something, and where a version is measured again.
        """
        if _same(params, self._newest):
            return
        self._newest = params
        self._versions += 1
        if not self._iterate_average:
            self._exchanged.load(params)
            return
        share = 9 / (self._versions + 8)
        for name, values in params.items():
            average = self._average.setdefault(name, np.zeros(values.shape))
            average += share * (values - average)
        self._exchanged.load({name: values.astype(np.float32) for name, values in self._average.items()})

    def metrics(self, stop: threading.Event | None = None) -> dict[str, float]:
        """`validation_loss`, `validation_accuracy`, `test_loss`, `test_accuracy` and the like, as means.

        Raises:
            Stopped: `stop` was set.
            NotFinite: one is NaN or infinite.
        """
        found: dict[str, float] = {}
        for name, examples in self._parts.items():
            found |= measure(self._model, self._likelihood, examples, name, stop)
        return found

    def evaluate(
        self, state: Mapping[str, Bundle], stop: threading.Event | None = None
    ) -> tuple[int, dict[str, float]]:
        """The same in one, as an evaluator of a federation is asked for it."""
        self.note(state["params"])
        return len(self._parts["test"]), self.metrics(stop)

    def train(
        self,
        assignment: Assignment,
        state: Mapping[str, Bundle],
        kept: Kept | None,
        stop: threading.Event | None = None,
    ) -> Trained:
        """Raises: InvalidTask: it only measures."""
        raise InvalidTask("an evaluator holds no training examples")


def _same(params: Bundle, others: Bundle) -> bool:
    return params.keys() == others.keys() and all(
        np.array_equal(values, others[name]) for name, values in params.items()
    )
