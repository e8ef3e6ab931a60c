# SPDX-License-Identifier: Apache-2.0
"""Local training: J steps from an assignment's parameters to bundles. No network, no files.

Everything here is synchronous and heavy: run it in a thread. Arrays in and out are numpy; torch stays
on this side. On one CPU type and thread count, the same assignment, state and examples give the same
bits; a GPU draws other labels than a CPU from the same seed. A model that draws by itself (dropout) uses
torch's global generators, which are seeded on a CPU and on CUDA but shared by the process: its bits are
the same only while one thread at a time trains (a swarm's `parallel_training` of 1), and never on mps.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from protocol.algorithms import MIN_REFRESH_BATCH
from protocol.codec import Bundle
from protocol.errors import BundleMismatch, Internal, InvalidTask
from protocol.messages import Assignment
from worker.draws import Batches, Draws, draws_by_itself, torch_seeded
from worker.evaluation import measure
from worker.forward import Forward, OneWorker, recompute_blocks
from worker.local_state import Kept
from worker.local_steps import Stepped, local_steps
from worker.meter import Meter
from worker.model import Arrays, ExchangedParameters
from worker.optimizers import optimizer_named
from worker.optimizers.base import KeptTensors, Optimizer, RoundStart
from worker.options import Numerics
from worker.recording import recorder_on
from worker.slope import Model, Slope, Wanted, parts_of, slope_of
from worker.tasks.base import Examples, Task
from worker.tasks.failures import as_invalid_task
from worker.tasks.likelihood import likelihood_named

FROZEN_SEED = 0
"""Every worker makes its model under it, so that parameters which are not exchanged are the same on all."""


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

    It holds no algorithm state: `train` is given what was kept and returns what to keep. What the task's
    code or torch raises becomes an InvalidTask of one line.
    """

    def __init__(
        self,
        task: Task,
        examples: Examples | None,
        device: torch.device,
        numerics: Numerics = Numerics(),  # noqa: B008 - frozen
    ) -> None:
        """Put the task's model and this worker's own training examples on the device.

        Args:
            examples: None for a worker that only evaluates.

        Raises:
            InvalidTask: the model or the likelihood is not of a kind that can be exchanged, or the model not
                one whose blocks can be computed twice.
        """
        self._task = task
        self._likelihood = likelihood_named(task.likelihood)
        self._device = device
        with as_invalid_task(task.name, device):
            with torch_seeded(FROZEN_SEED, device):
                self._model = task.model().to(device)
            self._exchanged = ExchangedParameters.of(self._model)
            self._examples = None if examples is None else examples.to(device)
            likelihood, draws, self._num_with_terms = self._likelihood, False, 0
            if self._examples is not None:
                likelihood = likelihood.of_data(self._examples.targets)
                self._num_with_terms = likelihood.num_with_terms(self._examples.targets)
                draws = numerics.recompute and draws_by_itself(self._model, self._examples.inputs[:1])
            if numerics.recompute:
                recompute_blocks(self._model, draws=draws)
            forward = partial(Forward, self._model, likelihood, device, numerics)
            self._forward, self._forward_of_second_order = forward(), forward(twice_differentiable=True)
        self._labels = torch.Generator(device)
        records = numerics.record and examples is not None
        self._recorder = recorder_on(self._labels, padded=likelihood.padded) if records else None
        self._meter = Meter(device)
        self._micro_batch = numerics.micro_batch
        self._evaluation: Examples | None = None
        self._at_work = threading.Lock()

    def train(
        self,
        assignment: Assignment,
        state: Mapping[str, Bundle],
        kept: Kept | None,
        stop: threading.Event | None = None,
    ) -> Trained:
        """Do the assignment's local steps.

        Args:
            state: the assignment's bundles: `params`, and what else the server has.
            kept: what this worker's last assignment of the run returned.
            stop: set from another thread, it ends the work within a local step.

        Raises:
            Stopped: `stop` was set.
            InvalidTask: there are too few examples to train on, or the task's code failed.
            ShapeMismatch: a bundle does not fit the model.
            InvalidMessage: the optimizer is unknown or lacks a setting.
            BundleMismatch: the optimizer cannot give a bundle that is wanted.
            NotFinite: a setting, a loss or a result is NaN or infinite.
            Internal: this trainer is at work already.
        """
        with self._alone():
            return self._train(assignment, state, kept, stop)

    def evaluate(self, state: Mapping[str, Bundle], stop: threading.Event | None = None) -> Evaluation:
        """Measure `params` on the task's evaluation data: `test_loss`, `test_accuracy` and the like.

        Args:
            stop: set from another thread, it ends the work within a batch.

        Raises:
            Stopped: `stop` was set.
            InvalidTask: there are no evaluation examples, or the task's code failed.
            ShapeMismatch: the parameters do not fit the model.
            NotFinite: a metric is NaN or infinite.
            Internal: this trainer is at work already.
        """
        with self._alone():
            return self._evaluate(state, stop)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        # two calls at once would move the same parameters, and neither would notice
        if not self._at_work.acquire(blocking=False):
            raise Internal(f"task {self._task.name}: a trainer was called while it was at work")
        try:
            with as_invalid_task(self._task.name, self._device):
                yield
        finally:
            self._at_work.release()

    def _train(
        self,
        assignment: Assignment,
        state: Mapping[str, Bundle],
        kept: Kept | None,
        stop: threading.Event | None,
    ) -> Trained:
        examples = self._examples_for(assignment)
        begun = time.perf_counter()
        exchanged = self._exchanged
        start = exchanged.flat_of("params", state["params"])
        exchanged.take(start)
        begin_round = optimizer_named(assignment.optimizer)
        stepped = self._steps(
            assignment,
            examples,
            lambda: begin_round(assignment.settings, self._round_start(assignment, start, state, kept)),
            stop,
        )
        exchanged.require_in_place()
        bundles = {"delta": exchanged.arrays_of("delta", exchanged.flat - start)}
        for name, (flat,) in stepped.optimizer.uploads().items():
            bundles[name] = exchanged.arrays_of(name, flat)
        return Trained(
            bundles=wanted_of(bundles, assignment),
            kept=self._to_keep(stepped.optimizer.kept()),
            num_examples=len(examples),
            local_steps=assignment.local_steps,
            metrics=stepped.metrics | {"train_seconds": time.perf_counter() - begun},
        )

    def _examples_for(self, assignment: Assignment) -> Examples:
        """This worker's examples, if they are enough for what is asked; the server is not trusted here."""
        require_enough(self._task.name, assignment, self._num_with_terms)
        assert self._examples is not None
        return self._examples

    def _evaluate(self, state: Mapping[str, Bundle], stop: threading.Event | None) -> Evaluation:
        self._exchanged.load(state["params"])
        if self._evaluation is None:
            self._evaluation = self._task.evaluation_data().to(self._device)
        self._exchanged.require_in_place()
        metrics = measure(self._model, self._likelihood, self._evaluation, "test", stop)
        return Evaluation(len(self._evaluation), metrics)

    def _steps(
        self,
        assignment: Assignment,
        examples: Examples,
        begin: Callable[[], Optimizer],
        stop: threading.Event | None,
    ) -> Stepped:
        draws = Draws.seeded(assignment.seed, self._device, self._labels)
        batches = Batches(
            [draws.batches], [len(examples)], assignment.batch_size, assignment.local_steps, self._device
        )
        self._model.train()
        with torch_seeded(draws.model_seed, self._device):
            return local_steps(
                assignment,
                begin,
                self._exchanged.flat,
                lambda: examples.batch(batches.next()[0]),
                lambda batch, optimizer: self._slope(assignment, batch, optimizer, draws),
                self._meter,
                stop,
                after_step=self._exchanged.show,
            )

    def _slope(self, assignment: Assignment, batch: Examples, optimizer: Optimizer, draws: Draws) -> Slope:
        exchanged = self._exchanged
        wanted = Wanted.by(optimizer, assignment, exchanged.layout)
        forward = self._forward_of_second_order if wanted.second_order else self._forward
        model = Model(OneWorker(forward, draws.labels), exchanged.tensors, exchanged.layout)

        def slope(batch: Examples) -> Slope:
            parts = partial(parts_of, batch, at_most=self._micro_batch, num_terms=forward.num_terms)
            return slope_of(parts, wanted, model)

        if self._recorder is None or wanted.vector is not None:
            return slope(batch)
        return self._recorder.slope((wanted.estimator, wanted.num_estimated), batch, slope)

    def _round_start(
        self, assignment: Assignment, start: Tensor, state: Mapping[str, Bundle], kept: Kept | None
    ) -> RoundStart:
        flat_of = self._exchanged.flat_of
        kept_tensors = None
        if kept is not None:
            bundles = {name: (flat_of(name, bundle),) for name, bundle in kept.bundles.items()}
            kept_tensors = KeptTensors(kept.step, bundles)
        return RoundStart(
            parameters=(start,),
            shared={name: (flat_of(name, state[name]),) for name in state if name != "params"},
            kept=kept_tensors,
            bundles_wanted=assignment.bundles,
        )

    def _to_keep(self, kept: KeptTensors | None) -> Kept | None:
        if kept is None:
            return None
        arrays = {name: self._exchanged.arrays_of(name, flat) for name, (flat,) in kept.bundles.items()}
        return Kept(kept.step, arrays)


def require_enough(task_name: str, assignment: Assignment, num_examples: int) -> None:
    """Raises: InvalidTask: a worker with so many examples cannot do the assignment, or must not.

    Args: num_examples: those with a loss term; the others have no part in an estimate.
    """
    if not num_examples:
        raise InvalidTask(f"task {task_name}: this worker holds no training examples that have a loss term")
    drawn_from = min(assignment.hessian_batch or assignment.batch_size, assignment.batch_size, num_examples)
    if "hessian" in assignment.bundles and drawn_from < MIN_REFRESH_BATCH:
        raise InvalidTask(
            f"task {task_name}: a Hessian estimate is wanted of {drawn_from} examples, fewer than "
            f"{MIN_REFRESH_BATCH}: the estimate would reveal single examples"
        )


def wanted_of(bundles: Mapping[str, Arrays], assignment: Assignment) -> dict[str, Arrays]:
    """Give the bundles that an update must carry, in their order.

    Raises:
        BundleMismatch: the optimizer does not give one.
    """
    missing = [name for name in assignment.bundles if name not in bundles]
    if missing:
        raise BundleMismatch(f"optimizer {assignment.optimizer} gives {', '.join(bundles)}, not {missing[0]}")
    return {name: bundles[name] for name in assignment.bundles}


def initial_parameters(task: Task, seed: int) -> Arrays:
    """Give the parameters a run begins with: those of a new model under this seed.

    Raises:
        InvalidTask: the model is not of a kind that can be exchanged, or making it failed.
    """
    cpu = torch.device("cpu")
    with as_invalid_task(task.name, cpu), torch_seeded(seed, cpu):
        exchanged = ExchangedParameters.of(task.model())
    return exchanged.arrays_of("params", exchanged.flat)
