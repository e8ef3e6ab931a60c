# SPDX-License-Identifier: Apache-2.0
"""What is recorded and played again gives the rounds that it gave when it was computed.

A CPU cannot record. What stands in for a recording here computes again, by what it was given when it was
made, and writes every slope where the last one was; once a step is over, it is NaN.
"""

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from protocol.algorithms import ALGORITHMS
from protocol.messages import Assignment
from tests.worker.small_rounds import CPU, OnDigits, a_state, an_assignment, assert_same_bits, digits
from worker.curvature import ESTIMATORS
from worker.local_state import Kept
from worker.meter import Meter
from worker.options import Numerics
from worker.recording import MOST_KINDS, STEPS_BEFORE, Compute, Recorder, recorder_on
from worker.slope import Slope
from worker.tasks.base import Examples, Task
from worker.training import Trained, Trainer, initial_parameters

torch.set_num_threads(1)


class InOnePlace:
    """Recordings that share their memory."""

    def __init__(self) -> None:
        self.made = 0
        self._place: list[Tensor] = []

    def record(self, batch: Examples, compute: Compute) -> Compute:
        self.made += 1
        own = Examples(batch.inputs.clone(), batch.targets.clone())

        def play(batch: Examples) -> Slope:
            self.spoil()
            own.inputs.copy_(batch.inputs)
            own.targets.copy_(batch.targets)
            found = compute(own)
            given = [found.loss, found.gradient, *([] if found.curvature is None else [found.curvature])]
            missing = given[len(self._place) :]
            self._place += [torch.empty_like(tensor) for tensor in missing]
            for place, tensor in zip(self._place, given, strict=False):
                place.copy_(tensor)
            loss, gradient, *curvature = self._place[: len(given)]
            return Slope(loss, gradient, curvature[0] if curvature else None, found.num_terms)

        return play

    def spoil(self) -> None:
        for place in self._place:
            place.fill_(float("nan"))

    def clock(self) -> float:
        """It is looked at when a step is over."""
        self.spoil()
        return time.perf_counter()


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 10))


def trainers(task: Task, micro_batch: int | None) -> tuple[Trainer, Trainer, InOnePlace]:
    """One that computes, and one that plays what was recorded."""
    examples, numerics = task.training_data().batch(torch.arange(200)), Numerics(micro_batch=micro_batch)
    plain, playing = (Trainer(task, examples, CPU, numerics) for _ in range(2))
    recordings = InOnePlace()
    playing._recorder = Recorder(recordings.record)
    playing._meter = Meter(CPU, recordings.clock)
    return plain, playing, recordings


def assert_same_rounds(plain: Trainer, playing: Trainer, task: Task, rounds: list[Assignment]) -> None:
    algorithm = {row.optimizer: row.name for row in ALGORITHMS.values()}[rounds[0].optimizer]
    state = a_state(algorithm) | {"params": initial_parameters(task, 0)}
    given = {name: state[name] for name in state if task.name == "digits" or name == "params"}
    before: list[Kept | None] = [None, None]
    for assignment in rounds:
        done: list[Trained] = []
        for index, trainer in enumerate((plain, playing)):
            done.append(trainer.train(assignment, given, before[index]))
            before[index] = done[-1].kept
        first, second = done
        assert_same_bits(first.bundles, second.bundles)
        assert first.metrics["train_loss"] == second.metrics["train_loss"]
        assert first.metrics.get("clip_fraction") == second.metrics.get("clip_fraction")
        assert (first.kept is None) == (second.kept is None)
        if first.kept is not None and second.kept is not None:
            assert first.kept.step == second.kept.step
            assert_same_bits(dict(first.kept.bundles), dict(second.kept.bundles))


@pytest.mark.parametrize("few", [None, 8], ids=["all", "few"])
@pytest.mark.parametrize("micro_batch", [None, 12], ids=["whole", "in parts"])
@pytest.mark.parametrize("task", [digits(), OnDigits(with_dropout)], ids=["digits", "dropout"])
@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_rounds_of_every_algorithm_are_bit_for_bit_those_that_were_computed(
    algorithm: str, task: Task, micro_batch: int | None, few: int | None
) -> None:
    """Nobody holds on to what is written over, and what was recorded goes by nothing that changes."""
    plain, playing, recordings = trainers(task, micro_batch)
    often = {"hessian_every": 2} if "hessian_every" in ALGORITHMS[algorithm].parse({}).model_dump() else {}
    rounds = [
        an_assignment(algorithm, version=version, seed=version, local_steps=9, **often).model_copy(
            update={"hessian_batch": few, "batch_size": size}
        )
        for version, size in ((5, 32), (6, 24), (10, 32), (15, 32), (16, 24))
    ]
    assert_same_rounds(plain, playing, task, rounds)
    assert recordings.made


@pytest.mark.parametrize("micro_batch", [None, 12], ids=["whole", "in parts"])
def test_a_recording_is_played_for_the_estimator_and_the_number_of_examples_it_was_made_for(
    micro_batch: int | None,
) -> None:
    plain, playing, recordings = trainers(digits(), micro_batch)
    rounds = [
        an_assignment("fed-sophia", seed=seed, hessian_every=2, local_steps=9).model_copy(
            update={"hessian_batch": few, "hessian_estimator": estimator}
        )
        for seed in (1, 2)
        for estimator in ESTIMATORS
        for few in (None, 8, 32, 12)
    ]
    assert_same_rounds(plain, playing, digits(), rounds)
    assert recordings.made == MOST_KINDS


# --- when it is recorded, and when not -------------------------------------------------------------


def a_batch(size: int) -> Examples:
    return Examples(torch.ones(size, 3), torch.ones(size))


def computed(batch: Examples) -> Slope:
    return Slope(batch.inputs.sum(), batch.inputs.sum(dim=0), batch.inputs.amax(dim=0), len(batch))


class Refuses:
    """Cannot record; counts how often it was asked to."""

    def __init__(self, after: int = 0) -> None:
        self.asked, self._after, self._recordings = 0, after, InOnePlace()

    def record(self, batch: Examples, compute: Compute) -> Compute:
        self.asked += 1
        if self.asked <= self._after:
            return self._recordings.record(batch, compute)
        compute(batch)
        raise RuntimeError("operation not permitted when stream is capturing\nand a second line")


def test_the_first_steps_of_a_kind_are_computed_as_they_are_in_the_thread_that_records() -> None:
    """torch has handles of NVIDIA's libraries for each thread, which cannot be made while recording."""
    recordings = InOnePlace()
    recorder = Recorder(recordings.record)
    for _ in range(STEPS_BEFORE):
        recorder.slope("plain", a_batch(4), computed)
    with ThreadPoolExecutor(1) as executor:
        for _ in range(STEPS_BEFORE):
            executor.submit(recorder.slope, "plain", a_batch(4), computed).result()
        assert not recordings.made
        executor.submit(recorder.slope, "plain", a_batch(4), computed).result()
        assert recordings.made == 1
    recorder.slope("plain", a_batch(4), computed)
    assert recordings.made == 1


def test_a_curvature_stays_what_it_is_when_others_are_played() -> None:
    recordings = InOnePlace()
    recorder = Recorder(recordings.record)
    slopes = [recorder.slope("estimate", a_batch(4), computed) for _ in range(STEPS_BEFORE + 2)]
    recordings.spoil()
    assert all(slope.curvature is not None and slope.curvature.isfinite().all() for slope in slopes)
    assert slopes[-1].gradient.isnan().all()


def test_a_server_that_asks_for_ever_other_batches_has_no_more_recorded_than_so_many() -> None:
    recordings = InOnePlace()
    recorder = Recorder(recordings.record)
    for size in range(1, MOST_KINDS + 4):
        for _ in range(STEPS_BEFORE + 2):
            assert recorder.slope("plain", a_batch(size), computed).num_terms == size
    assert recordings.made == MOST_KINDS


@pytest.mark.parametrize("after", [0, 1])
def test_what_cannot_be_recorded_is_computed_it_is_said_once_and_not_tried_again(
    after: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even what was recorded is played: a recording that failed may have left something behind."""
    refuses = Refuses(after)
    recorder = Recorder(refuses.record)
    for size in range(1, 4):
        for _ in range(STEPS_BEFORE + 2):
            assert recorder.slope("plain", a_batch(size), computed).loss == 3 * size
    assert refuses.asked == after + 1
    assert not recorder._recordings
    (said,) = caplog.messages
    assert said.endswith("RuntimeError: operation not permitted when stream is capturing")


@contextmanager
def no_search_for_garbage() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def test_what_a_recording_that_failed_had_in_memory_is_gone_before_the_step_is_computed() -> None:
    held: list[weakref.ref[Tensor]] = []
    recording = threading.Event()

    def large(batch: Examples) -> Slope:
        assert all(each() is None for each in held)
        activations = batch.inputs.exp()
        held.append(weakref.ref(activations))
        if recording.is_set():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return computed(batch)

    def record(batch: Examples, compute: Compute) -> Compute:
        recording.set()
        try:
            compute(batch)
        finally:
            recording.clear()
        return compute

    recorder = Recorder(record)
    with no_search_for_garbage():
        for _ in range(STEPS_BEFORE + 1):
            recorder.slope("plain", a_batch(4), large)
    assert len(held) == STEPS_BEFORE + 2


def test_whoever_asks_for_recordings_where_there_are_none_is_told_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    on_cuda = cast("torch.Generator", SimpleNamespace(device=torch.device("cuda")))
    assert recorder_on(on_cuda, padded=True) is None
    assert "padding" in caplog.text
    caplog.clear()
    Trainer(digits(), None, CPU, Numerics(record=True))  # trains nothing
    Trainer(digits(), digits().training_data(), CPU)
    assert not caplog.text
    Trainer(digits(), digits().training_data(), CPU, Numerics(record=True))
    assert "only those on a CUDA device" in caplog.text
