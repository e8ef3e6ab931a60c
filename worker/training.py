# SPDX-License-Identifier: Apache-2.0
"""Local training: J steps from an assignment's parameters to bundles. No network, no files.

Everything here is synchronous and heavy: run it in a thread. Arrays in and out are numpy; torch stays
on this side. On one CPU type and thread count, the same assignment, state and examples give the same
bits; a GPU draws other labels than a CPU from the same seed. A model that draws by itself (dropout) uses
torch's global generator: its bits are the same only while one thread at a time trains.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from protocol.codec import Bundle
from protocol.errors import BundleMismatch, DeviceUnavailable, InvalidTask, NotFinite
from protocol.messages import Assignment
from worker.curvature import gauss_newton_bartlett
from worker.local_state import Kept
from worker.model import Arrays, ExchangedParameters
from worker.optimizers import optimizer_named
from worker.optimizers.base import LocalState, Optimizer, RoundStart
from worker.tasks.base import Examples, Task
from worker.tasks.likelihood import likelihood_named

EVALUATION_BATCH = 1000


@dataclass(frozen=True)
class Trained:
    """What one assignment gave."""

    bundles: dict[str, Arrays]
    """Exactly the bundles wanted, in that order; tensors named and ordered as in `params`."""
    kept: Kept | None
    """What the next assignment of this run must be given; None if the optimizer keeps nothing."""
    num_examples: int
    local_steps: int
    metrics: dict[str, float]


class Evaluation(NamedTuple):
    """What a version's parameters are worth on the evaluation data."""

    num_examples: int
    metrics: dict[str, float]


class Trainer:
    """One worker's model and data on a device, reused between rounds. One call at a time.

    It holds no algorithm state: `train` is given what was kept and returns what to keep.
    """

    def __init__(self, task: Task, examples: Examples | None, device: torch.device) -> None:
        """Put the task's model and this worker's own training examples on the device.

        Args:
            examples: None for a worker that only evaluates.

        Raises:
            InvalidTask: the model or the likelihood is not of a kind that can be exchanged.
        """
        self._task = task
        self._likelihood = likelihood_named(task.likelihood)
        self._device = device
        self._model = task.model().to(device)
        self._exchanged = ExchangedParameters.of(self._model)
        self._examples = None if examples is None else examples.to(device)
        self._evaluation: Examples | None = None

    def train(self, assignment: Assignment, state: Mapping[str, Bundle], kept: Kept | None) -> Trained:
        """Do the assignment's local steps.

        Args:
            state: the assignment's bundles: `params`, and what else the server has.
            kept: what this worker's last assignment of the run returned.

        Raises:
            InvalidTask: there are no examples to train on.
            ShapeMismatch: a bundle does not fit the model.
            InvalidMessage: the optimizer is unknown or lacks a setting.
            BundleMismatch: the optimizer cannot give a bundle that is wanted.
            NotFinite: a loss or a result is NaN or infinite.
        """
        if self._examples is None or not len(self._examples):
            raise InvalidTask(f"task {self._task.name}: this worker holds no training examples")
        begun = time.perf_counter()
        exchanged = self._exchanged
        exchanged.load(state["params"])
        begin_round = optimizer_named(assignment.optimizer)
        optimizer = begin_round(assignment.settings, self._round_start(assignment, state, kept))
        optimizer, train_loss = self._steps(assignment, self._examples, optimizer)
        bundles = {"delta": exchanged.delta_from(state["params"])}
        for name, tensors in optimizer.uploads().items():
            bundles[name] = exchanged.arrays_of(name, tensors)
        metrics = {"train_loss": train_loss, "train_seconds": time.perf_counter() - begun}
        return Trained(
            bundles=_wanted(bundles, assignment),
            kept=self._to_keep(optimizer.kept()),
            num_examples=len(self._examples),
            local_steps=assignment.local_steps,
            metrics=metrics | optimizer.metrics(),
        )

    def evaluate(self, state: Mapping[str, Bundle]) -> Evaluation:
        """Measure `params` on the task's evaluation data: `test_loss`, `test_accuracy` and the like.

        Raises:
            InvalidTask: there are no evaluation examples.
            ShapeMismatch: the parameters do not fit the model.
            NotFinite: a metric is NaN or infinite.
        """
        self._exchanged.load(state["params"])
        if self._evaluation is None:
            self._evaluation = self._task.evaluation_data().to(self._device)
        if not len(self._evaluation):
            raise InvalidTask(f"task {self._task.name}: there are no evaluation examples")
        self._model.eval()
        sums: dict[str, float] = {}
        num_terms = 0
        with torch.inference_mode():
            for first in range(0, len(self._evaluation), EVALUATION_BATCH):
                rows = slice(first, first + EVALUATION_BATCH)
                targets = self._evaluation.targets[rows]
                outputs = self._model(self._evaluation.inputs[rows])
                for name, value in self._likelihood.metrics(outputs, targets).items():
                    sums[name] = sums.get(name, 0.0) + value
                num_terms += self._likelihood.num_terms(targets)
        metrics = {f"test_{name}": value / num_terms for name, value in sums.items()}
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise NotFinite(f"{name} is NaN or infinite")
        return Evaluation(len(self._evaluation), metrics)

    def _steps(
        self, assignment: Assignment, examples: Examples, optimizer: Optimizer
    ) -> tuple[Optimizer, float]:
        """Do the local steps; give where the optimizer stands after them, and the mean training loss."""
        draws = _Draws.seeded(assignment.seed, self._device)
        parameters = self._exchanged.tensors
        losses = []
        self._model.train()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(draws.model_seed)
            for _ in range(assignment.local_steps):
                rows = torch.randint(len(examples), (assignment.batch_size,), generator=draws.batches)
                batch = examples.batch(rows)
                outputs = self._model(batch.inputs)
                loss = self._likelihood.loss(outputs, batch.targets)
                estimate = None
                if optimizer.wants_hessian:
                    estimate = tuple(
                        gauss_newton_bartlett(
                            outputs, parameters, self._likelihood, draws.labels, retain_graph=True
                        )
                    )
                gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
                optimizer = optimizer.step(parameters, gradients, estimate)
                losses.append(loss.detach())
        return optimizer, _mean_of_finite(torch.stack(losses))

    def _round_start(
        self, assignment: Assignment, state: Mapping[str, Bundle], kept: Kept | None
    ) -> RoundStart:
        tensors_of = self._exchanged.tensors_of
        local_state = None
        if kept is not None:
            bundles = {name: tensors_of(name, bundle) for name, bundle in kept.bundles.items()}
            local_state = LocalState(kept.step, bundles)
        return RoundStart(
            parameters=self._exchanged.tensors,
            shared={name: tensors_of(name, state[name]) for name in state if name != "params"},
            kept=local_state,
            bundles_wanted=assignment.bundles,
        )

    def _to_keep(self, local_state: LocalState | None) -> Kept | None:
        if local_state is None:
            return None
        arrays_of = self._exchanged.arrays_of
        return Kept(local_state.step, {name: arrays_of(name, t) for name, t in local_state.bundles.items()})


class _Draws(NamedTuple):
    """The random sources of one assignment.

    Their three seeds are the first words of numpy's SeedSequence of the assignment's seed: torch's
    generator on a CPU heeds 32 bits of a seed only, and the assignment's has 63.
    """

    batches: torch.Generator
    """On the CPU, so that every device draws the same batches."""
    labels: torch.Generator
    """On the model's device."""
    model_seed: int
    """For torch's global generator, which a model may draw from: dropout."""

    @classmethod
    def seeded(cls, seed: int, device: torch.device) -> "_Draws":
        batches, labels, model = np.random.SeedSequence(seed).generate_state(3, np.uint64).tolist()
        return cls(torch.Generator().manual_seed(batches), torch.Generator(device).manual_seed(labels), model)


def _mean_of_finite(losses: Tensor) -> float:
    finite = losses.isfinite()
    if not finite.all():
        step = int(finite.logical_not().nonzero()[0])
        raise NotFinite(
            f"the training loss of local step {step} (of {len(losses)}, from 0) is NaN or infinite"
        )
    return losses.mean().item()


def _wanted(bundles: dict[str, Arrays], assignment: Assignment) -> dict[str, Arrays]:
    missing = [name for name in assignment.bundles if name not in bundles]
    if missing:
        raise BundleMismatch(f"optimizer {assignment.optimizer} gives {', '.join(bundles)}, not {missing[0]}")
    return {name: bundles[name] for name in assignment.bundles}


def initial_parameters(task: Task, seed: int) -> Arrays:
    """Give the parameters a run begins with: those of a new model under this seed.

    Raises:
        InvalidTask: the model is not of a kind that can be exchanged.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        exchanged = ExchangedParameters.of(task.model())
    return exchanged.arrays_of("params", exchanged.tensors)


def choose_device(name: str) -> torch.device:
    """Give the device called `cpu`, `cuda`, `cuda:1` or `mps`; `auto` is the first of cuda, mps, cpu here.

    Raises:
        DeviceUnavailable: this machine has no such device.
    """
    has_mps = torch.backends.mps.is_available()
    num_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if num_cuda else "mps" if has_mps else "cpu")
    here = ["cpu", *(["mps"] if has_mps else []), *(["cuda"] if num_cuda else [])]
    here += [f"cuda:{index}" for index in range(num_cuda)]
    if name not in here:
        raise DeviceUnavailable(f"device {name!r}: this machine has {', '.join(here)}, or say auto")
    return torch.device(name)
