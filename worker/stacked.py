# SPDX-License-Identifier: Apache-2.0
"""Many workers' local training at once: their models stacked along a new first dimension.

    θ of K workers: (K, *shape);  outputs = vmap(model)(θ, inputs of K workers)
    the sum of the K mean losses has, for each worker, the gradient of its own

An optimizer moves every coordinate by itself, so it takes stacked tensors as it is. Batches and drawn labels
come from each worker's own seed: what comes out is what `Trainer` gives one worker after another, to rounding
of float32. Only a model that draws by itself (dropout) draws other numbers here.

Stacks go side by side, each in a thread of its own: a small operation gains little from several threads.
A stack for which the device's memory does not suffice is done again in halves, and no stack is larger than
these from then on: nothing has been handed out before, so that the results are the same.
"""

import copy
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from protocol.codec import Bundle
from protocol.errors import InvalidTask
from protocol.messages import Assignment
from worker.draws import Batches, Draws, draws_by_itself, torch_seeded
from worker.local_state import Kept
from worker.local_steps import Stepped, local_steps
from worker.many_workers import ManyWorkers
from worker.meter import Meter
from worker.model import ExchangedParameters
from worker.optimizers import optimizer_named
from worker.optimizers.base import KeptTensors, Optimizer, RoundStart
from worker.slope import Model, Slope, Wanted, parts_of, slope_of
from worker.tasks.base import Examples, Task
from worker.tasks.failures import as_invalid_task
from worker.tasks.likelihood import likelihood_named
from worker.tasks.partition import Indices
from worker.training import FROZEN_SEED, Trained, require_enough, wanted_of


@dataclass(frozen=True)
class Job:
    """One worker's part of a round."""

    worker: int
    """Its place in the `rows` of the trainer."""
    assignment: Assignment
    kept: Kept | None
    """What this worker's last assignment of the run returned."""


class StackedTrainer:
    """All the workers of a simulation, on one device. It holds no algorithm state, like `Trainer`."""

    def __init__(
        self,
        task: Task,
        examples: Examples,
        rows: Sequence[Indices],
        device: torch.device,
        *,
        stack: int,
        threads: int,
    ) -> None:
        """Put the task's model and all examples on the device.

        Args:
            rows: for each worker, which of the examples are its own.
            stack: so many workers are stacked, at most.
            threads: so many stacks go side by side.

        Raises:
            InvalidTask: the model cannot be exchanged or stacked, or some targets are padding.
        """
        self._task = task
        self._likelihood = likelihood_named(task.likelihood).of_data(examples.targets)
        if self._likelihood.padded:
            raise InvalidTask(f"task {task.name}: targets that are padding cannot be stacked")
        self._device = device
        with as_invalid_task(task.name, device):
            with torch_seeded(FROZEN_SEED, device):
                model = task.model().to(device).train()
            self._exchanged = ExchangedParameters.of(model)
            self._examples = examples.to(device)
            self._draws = draws_by_itself(model, self._examples.inputs[:1])
            # models that draw share torch's global generators, so one at a time
            lanes = 1 if self._draws else threads
            # a model each: a call puts the parameters it is given into the module
            self._models = [model, *(copy.deepcopy(model) for _ in range(lanes - 1))]
        self._rows = [torch.from_numpy(np.asarray(each, dtype=np.int64)) for each in rows]
        self._stack = stack
        self._shrinking = threading.Lock()
        self._meter = Meter(device)

    @property
    def stack(self) -> int:
        """So many workers are stacked at most: what was asked for, or fewer since memory was used up."""
        return self._stack

    def train(
        self, jobs: Sequence[Job], state: Mapping[str, Bundle], stop: threading.Event | None = None
    ) -> list[Trained]:
        """Do the local steps of several workers in one round; one result a job, in their order.

        Args:
            jobs: assignments of the same round, which differ in slot and seed alone.
            state: the bundles that all of them start from.
            stop: set from another thread, it ends the work within a local step.

        Raises:
            Stopped: `stop` was set.
            InvalidTask: a worker has too few examples, the task's code failed, or the device's memory does
                not suffice for one worker.
            ShapeMismatch, BundleMismatch, InvalidMessage: as in `Trainer.train`.
            NotFinite: a loss or a result is NaN or infinite.
        """
        with as_invalid_task(self._task.name, self._device):
            shared = {name: self._exchanged.flat_of(name, bundle) for name, bundle in state.items()}
            stacks = self._stacks(jobs)
            lane = partial(self._lane, stacks, shared, stop)
            if len(self._models) == 1:
                results = lane(0)
            else:
                with ThreadPoolExecutor(len(self._models), thread_name_prefix="stack") as executor:
                    lanes = list(executor.map(lane, range(len(self._models))))
                results = {worker: trained for done in lanes for worker, trained in done.items()}
            return [results[job.worker] for job in jobs]

    def _stacks(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """Jobs that can be done together: their optimizers do the same at every step."""
        by_schedule: dict[int, list[Job]] = {}
        for job in jobs:
            require_enough(self._task.name, job.assignment, len(self._rows[job.worker]))
            by_schedule.setdefault(_schedule(job), []).append(job)
        stacks = []
        for alike in by_schedule.values():
            # of equal sizes, at least one for each thread
            number = max(math.ceil(len(alike) / self._stack), min(len(self._models), len(alike)))
            cuts = [len(alike) * index // number for index in range(number + 1)]
            stacks += [alike[first:last] for first, last in pairwise(cuts)]
        return stacks

    def _lane(
        self,
        stacks: Sequence[Sequence[Job]],
        shared: Mapping[str, Tensor],
        stop: threading.Event | None,
        lane: int,
    ) -> dict[int, Trained]:
        """Do one thread's stacks, one after the other; {worker: what it gave}."""
        results: dict[int, Trained] = {}
        left = list(reversed(stacks[lane :: len(self._models)]))
        while left:
            jobs = left.pop()
            fits = len(jobs) <= self._stack
            trained = self._if_it_fits(self._models[lane], jobs, shared, stop) if fits else None
            if trained is None:
                if fits:
                    self._shrink(len(jobs))
                middle = len(jobs) // 2
                left += [jobs[middle:], jobs[:middle]]
            else:
                results |= {job.worker: each for job, each in zip(jobs, trained, strict=True)}
        return results

    def _if_it_fits(
        self,
        model: nn.Module,
        jobs: Sequence[Job],
        shared: Mapping[str, Tensor],
        stop: threading.Event | None,
    ) -> list[Trained] | None:
        """None: the device has too little memory for so many.

        Raises:
            torch.OutOfMemoryError: and for one alone.
        """
        try:
            return self._train(model, jobs, shared, stop)
        except torch.OutOfMemoryError:
            if len(jobs) == 1:
                raise
        return None

    def _shrink(self, too_many: int) -> None:
        """Stack half as many from now on. The error, whose frames held the memory, is gone by now."""
        with self._shrinking:
            self._stack = min(self._stack, too_many // 2)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _train(
        self,
        model: nn.Module,
        jobs: Sequence[Job],
        shared: Mapping[str, Tensor],
        stop: threading.Event | None,
    ) -> list[Trained]:
        first = jobs[0].assignment
        begin_round = optimizer_named(first.optimizer)
        params = shared["params"]
        theta = params.repeat(len(jobs), 1)

        def begin() -> Optimizer:
            # each worker's own copy: a fused step reads what lies one behind the other
            own = {name: (flat.repeat(len(jobs), 1),) for name, flat in shared.items() if name != "params"}
            return begin_round(first.settings, RoundStart((theta,), own, self._kept(jobs), first.bundles))

        stepped = self._steps(model, jobs, theta, begin, stop)
        bundles = {"delta": self._exchanged.arrays_of("delta", theta - params)}
        for name, (flat,) in stepped.optimizer.uploads().items():
            bundles[name] = self._exchanged.arrays_of(name, flat)
        bundles = wanted_of(bundles, first)
        kept = self._to_keep(jobs, stepped.optimizer.kept())
        return [
            Trained(
                bundles={
                    # with "...", also a tensor of no dimension stays an array
                    bundle: {name: values[index, ...] for name, values in arrays.items()}
                    for bundle, arrays in bundles.items()
                },
                kept=kept[index],
                num_examples=len(self._rows[job.worker]),
                local_steps=job.assignment.local_steps,
                metrics=dict(stepped.metrics),
            )
            for index, job in enumerate(jobs)
        ]

    def _steps(
        self,
        model: nn.Module,
        jobs: Sequence[Job],
        theta: Tensor,
        begin: Callable[[], Optimizer],
        stop: threading.Event | None,
    ) -> Stepped:
        """Args: theta: the parameters of all, shape (K, n), which are moved."""
        first = jobs[0].assignment
        draws = [Draws.seeded(job.assignment.seed, self._device) for job in jobs]
        many = ManyWorkers(model, self._exchanged, theta, self._likelihood, [d.labels for d in draws])
        rows = [self._rows[job.worker] for job in jobs]
        batches = Batches(
            [each.batches for each in draws], rows, first.batch_size, first.local_steps, self._device
        )
        layout = self._exchanged.layout

        def slope_at(batch: Examples, optimizer: Optimizer) -> Slope:
            return slope_of(
                lambda first: parts_of(batch, first, None, lambda targets: targets[0].numel(), dim=1),
                Wanted.by(optimizer, first, layout),
                Model(many, many.parameters, layout),
            )

        # seeded only where it matters: the generators are the whole process's, and lanes go side by side
        seeding = torch_seeded(draws[0].model_seed, self._device) if self._draws else nullcontext()
        with seeding:
            return local_steps(
                first,
                begin,
                theta,
                lambda: self._examples.batch(batches.next()),
                slope_at,
                self._meter,
                stop,
                workers=len(jobs),
            )

    def _kept(self, jobs: Sequence[Job]) -> KeptTensors | None:
        """What the workers kept, stacked; a worker that kept nothing yet is given zeros."""
        known = [job.kept for job in jobs if job.kept is not None]
        if not known:
            return None
        bundles = {}
        for bundle in known[0].bundles:
            stacked = torch.zeros(len(jobs), self._exchanged.layout.size, device=self._device)
            for row, job in zip(stacked, jobs, strict=True):
                if job.kept is not None:
                    row.copy_(self._exchanged.flat_of(bundle, job.kept.bundles[bundle]))
            bundles[bundle] = (stacked,)
        return KeptTensors(known[0].step, bundles)

    def _to_keep(self, jobs: Sequence[Job], after: KeptTensors | None) -> list[Kept | None]:
        """Each worker's own part, with its own count of steps."""
        if after is None:
            return [None] * len(jobs)
        steps = after.step - next((job.kept.step for job in jobs if job.kept is not None), 0)
        arrays = {
            bundle: self._exchanged.arrays_of(bundle, flat) for bundle, (flat,) in after.bundles.items()
        }
        return [
            Kept(
                steps + (0 if job.kept is None else job.kept.step),
                # copied: a row alone would hold the memory of its whole stack
                {
                    bundle: {name: values[index, ...].copy() for name, values in of_bundle.items()}
                    for bundle, of_bundle in arrays.items()
                },
            )
            for index, job in enumerate(jobs)
        ]


def _schedule(job: Job) -> int:
    """What of a worker's count of steps its optimizer goes by."""
    steps = 0 if job.kept is None else job.kept.step
    hessian_every = job.assignment.settings.get("hessian_every")
    return steps if hessian_every is None else steps % int(hessian_every)
