# SPDX-License-Identifier: Apache-2.0
"""Local training: what is refused, what a task's own failure becomes, and how work is stopped."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from protocol.algorithms import MIN_REFRESH_BATCH
from protocol.errors import (
    BundleMismatch,
    DataUnavailable,
    Internal,
    InvalidMessage,
    InvalidTask,
    NotFinite,
    ShapeMismatch,
)
from tests.worker.small_rounds import (
    CPU,
    OnDigits,
    a_state,
    a_trainer,
    an_assignment,
    assert_same_bits,
    digits,
)
from worker.options import Numerics, WorkerOptions
from worker.patience import Stopped
from worker.stacked import Job, StackedTrainer
from worker.tasks.base import Examples
from worker.tasks.likelihood import PADDING
from worker.tasks.partition import parse_partition
from worker.trainers import build_trainers
from worker.training import Trainer, initial_parameters

torch.set_num_threads(1)


# --- what does not fit -------------------------------------------------------------------------


def test_a_loss_that_is_not_a_number_is_refused_by_its_round() -> None:
    params = {name: np.full_like(array, np.inf) for name, array in initial_parameters(digits(), 0).items()}
    with pytest.raises(NotFinite, match="training loss of round 2 is NaN"):
        a_trainer().train(an_assignment("fedavg"), {"params": params}, None)
    with pytest.raises(NotFinite):
        a_trainer().evaluate({"params": params})


def test_training_that_diverges_is_refused_rather_than_sent() -> None:
    asked = an_assignment("fedavg").model_copy(update={"settings": {"learning_rate": 1e38}})
    with pytest.raises(NotFinite):
        a_trainer().train(asked, a_state("fedavg"), None)


@pytest.mark.parametrize("bundle", ["params", "hessian"])
def test_a_bundle_of_another_model_is_refused_by_name(bundle: str) -> None:
    state = a_state("fed-sophia-shared")
    first = next(iter(state[bundle]))
    state[bundle][first] = state[bundle][first].T[:5]
    with pytest.raises(ShapeMismatch, match=rf"{bundle}/{first}: expected \(64, 64\), got \(5, 64\)"):
        a_trainer().train(an_assignment(), state, None)
    state[bundle] = {f"other.{name}": array for name, array in state[bundle].items()}
    with pytest.raises(ShapeMismatch, match="expected 4 tensors"):
        a_trainer().train(an_assignment(), state, None)


def test_a_bundle_the_optimizer_cannot_give_is_refused() -> None:
    assignment = an_assignment("fedavg").model_copy(update={"bundles": ("delta", "hessian")})
    with pytest.raises(BundleMismatch, match="sgd gives delta, not hessian"):
        a_trainer().train(assignment, a_state("fedavg"), None)


def test_an_optimizer_this_worker_does_not_have_is_refused_with_the_menu() -> None:
    assignment = an_assignment().model_copy(update={"optimizer": "newton"})
    with pytest.raises(InvalidMessage, match=r"this worker has .*sgd, sophia, sophia_shared"):
        a_trainer().train(assignment, a_state("fedavg"), None)


@pytest.mark.parametrize("examples", [None, Examples(torch.zeros(0, 64), torch.zeros(0))])
def test_a_worker_without_examples_cannot_train(examples: Examples | None) -> None:
    with pytest.raises(InvalidTask, match="no training examples"):
        Trainer(digits(), examples, CPU).train(an_assignment(), a_state("fedavg"), None)


class Unmeasured(OnDigits):
    def evaluation_data(self) -> Examples:
        return Examples(torch.zeros(0, 64), torch.zeros(0))


def test_a_task_without_evaluation_examples_cannot_be_evaluated() -> None:
    task = Unmeasured(lambda: nn.Linear(64, 10))
    with pytest.raises(InvalidTask, match="no evaluation examples"):
        Trainer(task, None, CPU).evaluate({"params": initial_parameters(task, 0)})


def test_a_batch_of_nothing_but_padding_is_refused_by_name() -> None:
    examples = Examples(torch.zeros(50, 64), torch.full((50,), PADDING))
    with pytest.raises(InvalidTask, match="no training examples that have a loss term"):
        Trainer(digits(), examples, CPU).train(an_assignment(), a_state("fedavg"), None)
    examples.targets[0] = 3  # in none of the first mini-batch
    with pytest.raises(InvalidTask, match="every one of 1 examples is -100"):
        few = an_assignment(version=1).model_copy(update={"batch_size": 1})
        Trainer(digits(), examples, CPU).train(few, a_state("fedavg"), None)


# --- a server that asks for what it should not ---------------------------------------------------


def test_examples_without_a_loss_term_hide_nobody_in_an_estimate() -> None:
    """Of 40 examples one is not padding: the estimate would be the square of its gradient alone."""
    targets = torch.full((40,), PADDING)
    targets[7] = 3
    trainer = Trainer(digits(), Examples(torch.rand(40, 64), targets), CPU)
    with pytest.raises(InvalidTask, match="fewer than 8: the estimate would reveal single examples"):
        trainer.train(an_assignment(version=0), a_state("fedavg"), None)


@pytest.mark.parametrize(
    ("batch_size", "hessian_batch", "held"),
    [
        (MIN_REFRESH_BATCH - 1, None, 200),
        (32, MIN_REFRESH_BATCH - 1, 200),
        (MIN_REFRESH_BATCH - 1, 32, 200),
        (32, None, MIN_REFRESH_BATCH - 1),
    ],
)
def test_an_estimate_of_too_few_examples_is_refused_and_a_delta_of_them_is_not(
    batch_size: int, hessian_batch: int | None, held: int
) -> None:
    trainer = Trainer(digits(), digits().training_data().batch(torch.arange(held)), CPU)
    few = {"batch_size": batch_size, "hessian_batch": hessian_batch}
    asked = an_assignment(version=0).model_copy(update=few)
    assert "hessian" in asked.bundles
    with pytest.raises(InvalidTask, match=r"of 7 examples, .* would reveal single examples"):
        trainer.train(asked, a_state("fed-sophia-shared"), None)
    trainer.train(asked.model_copy(update={"bundles": ("delta",)}), a_state("fed-sophia-shared"), None)


def test_an_estimate_of_just_enough_examples_is_given() -> None:
    trainer = Trainer(digits(), digits().training_data().batch(torch.arange(MIN_REFRESH_BATCH)), CPU)
    asked = an_assignment(version=0).model_copy(update={"batch_size": MIN_REFRESH_BATCH})
    assert "hessian" in trainer.train(asked, a_state("fed-sophia-shared"), None).bundles


@pytest.mark.parametrize("value", [1e300, -1e39, float("inf"), float("nan")])
@pytest.mark.parametrize(
    ("algorithm", "name"),
    [("fedavg", "learning_rate"), ("fed-sophia", "hessian_every"), ("fed-sophia-shared", "epsilon")],
)
def test_a_setting_that_float32_cannot_hold_is_refused_by_name(
    algorithm: str, name: str, value: float
) -> None:
    asked = an_assignment(algorithm)
    asked = asked.model_copy(update={"settings": asked.settings | {name: value}})
    with pytest.raises(NotFinite, match=f"settings: {name} is"):
        a_trainer().train(asked, a_state(algorithm), None)


@pytest.mark.parametrize(
    "absurd",
    [
        {"batch_size": 10**15},
        {"batch_size": 10**30},
        {"batch_size": -1},
        {"batch_size": 0},
        {"settings": {"learning_rate": 3e38, "weight_decay": 3e38}},
        {"settings": {"learning_rate": 3e38, "clip_bound": 3e38}},
        {"settings": {"momentum_decay": -3e38}},
        {"settings": {"epsilon": 0.0}},
    ],
    ids=str,
)
def test_absurd_numbers_are_refused_by_an_error_of_ours(absurd: dict[str, object]) -> None:
    asked = an_assignment("fed-sophia")
    if isinstance(absurd.get("settings"), dict):
        absurd = {"settings": asked.settings | absurd["settings"]}  # type: ignore[operator]  # narrowed above
    with pytest.raises((InvalidTask, NotFinite)) as raised:
        a_trainer().train(asked.model_copy(update=absurd), a_state("fed-sophia"), None)
    assert "\n" not in raised.value.detail


# --- a task that fails ---------------------------------------------------------------------------


class Failing(nn.Module):
    """A linear model that raises this error at every pass."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self._error = error

    def forward(self, inputs: Tensor) -> Tensor:
        raise self._error


def sentence_of(work: Callable[[], object]) -> str:
    with pytest.raises(InvalidTask) as raised:
        work()
    assert isinstance(raised.value.__cause__, Exception)
    return raised.value.detail


def test_a_label_out_of_range_is_told_in_one_line_with_the_tasks_name() -> None:
    trainer = Trainer(digits(), Examples(torch.zeros(50, 64), torch.full((50,), 12)), CPU)
    told = sentence_of(lambda: trainer.train(an_assignment(), a_state("fed-sophia-shared"), None))
    assert told == "task digits: IndexError: Target 12 is out of bounds."


@pytest.mark.parametrize("compile_", [False, True], ids=["plain", "compiled"])
def test_a_model_that_gives_more_than_its_outputs_is_told_so(
    monkeypatch: pytest.MonkeyPatch, compile_: bool
) -> None:
    class WithWeights(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
            return super().forward(inputs), inputs

    task = OnDigits(lambda: WithWeights(64, 10))
    state = {"params": initial_parameters(task, 0)}
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)  # it takes seconds, and gives the same
    trainer = Trainer(task, task.training_data(), CPU, Numerics(compile=compile_))
    rows, job = [np.arange(40)], Job(0, an_assignment("fedavg"), None)
    stacked = StackedTrainer(task, task.training_data(), rows, CPU, stack=1, threads=1)
    for work in (
        lambda: trainer.train(job.assignment, state, None),
        lambda: trainer.evaluate(state),
        lambda: stacked.train([job], state),
    ):
        with pytest.raises(InvalidTask, match="the model gives a tuple, expected one tensor"):
            work()


def test_what_a_users_model_raises_is_told_in_one_line_of_bounded_length() -> None:
    task = OnDigits(lambda: Failing(ValueError("\n" + 300 * "x" + "\nand a second line")))
    state, trainer = {"params": initial_parameters(task, 0)}, a_trainer(task)
    expected = "task on-digits: ValueError: " + 200 * "x"
    assert sentence_of(lambda: trainer.train(an_assignment("fedavg"), state, None)) == expected
    assert sentence_of(lambda: trainer.evaluate(state)) == expected


def test_a_device_that_runs_out_of_memory_is_named() -> None:
    task = OnDigits(lambda: Failing(torch.OutOfMemoryError("Tried to allocate 9 GiB")))
    state = {"params": initial_parameters(task, 0)}
    told = sentence_of(lambda: a_trainer(task).train(an_assignment("fedavg"), state, None))
    assert told == "task on-digits: out of memory on cpu: OutOfMemoryError: Tried to allocate 9 GiB"


def test_a_model_that_cannot_be_made_is_told_by_workers_and_by_whoever_creates_the_run() -> None:
    def no_model() -> nn.Module:
        raise ZeroDivisionError

    task = OnDigits(no_model)
    assert sentence_of(lambda: Trainer(task, None, CPU)) == "task on-digits: ZeroDivisionError"
    assert sentence_of(lambda: initial_parameters(task, 0)) == "task on-digits: ZeroDivisionError"


class WithoutData(OnDigits):
    def evaluation_data(self) -> Examples:
        raise DataUnavailable("the disk is not mounted")


def test_an_error_of_ours_passes_as_it_is() -> None:
    task = WithoutData(lambda: nn.Linear(64, 10))
    with pytest.raises(DataUnavailable, match=r"^the disk is not mounted$"):
        Trainer(task, None, CPU).evaluate({"params": initial_parameters(task, 0)})


def options(task: str, partition: str | None = None) -> WorkerOptions:
    return WorkerOptions(
        "http://127.0.0.1:9", None, "w", Path(), task, partition=partition, partition_of=5, device="cpu"
    )


def test_training_data_that_cannot_be_read_are_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from torch import nn\n"
        "from worker.tasks.base import Task\n"
        "class Mine(Task):\n"
        "    name = 'mine'\n"
        "    def model(self): return nn.Linear(3, 1)\n"
        "    def training_data(self): return open('/absent/file')\n"
        "    def evaluation_data(self): return None\n"
    )
    told = sentence_of(lambda: build_trainers(options(str(path)), [0]))
    assert told == "task mine: FileNotFoundError: [Errno 2] No such file or directory: '/absent/file'"


@pytest.mark.parametrize("partition", [None, "shards:2"])
def test_each_of_a_swarms_trainers_holds_its_part_and_an_evaluator_none(partition: str | None) -> None:
    name, trainers = build_trainers(options("digits", partition), [3, None, 1])
    assert name == "digits"
    labels = digits().training_data().targets.numpy()
    for trainer, part in ((trainers[0], 3), (trainers[2], 1)):
        held = parse_partition(partition).indices(labels, part, 5, 0) if partition else labels
        trained = trainer.train(an_assignment("fedavg", local_steps=1), a_state("fedavg"), None)
        assert trained.num_examples == len(held)
    with pytest.raises(InvalidTask, match="no training examples"):
        trainers[1].train(an_assignment("fedavg"), a_state("fedavg"), None)


# --- stopping, and one call at a time --------------------------------------------------------------


class Watched(nn.Module):
    """A linear model that calls `at_pass` with the number of each forward pass, from 1."""

    def __init__(self, at_pass: Callable[[int], object]) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self._at_pass = at_pass
        self.passes = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.passes += 1
        self._at_pass(self.passes)
        outputs: Tensor = self.linear(inputs)
        return outputs


class LargelyMeasured(OnDigits):
    def evaluation_data(self) -> Examples:
        return digits().training_data().batch(torch.arange(3000) % 1437)


def test_training_stops_within_a_local_step_and_the_trainer_can_go_on_afterwards() -> None:
    stop, passes = threading.Event(), []

    def stop_at_the_third_pass(number: int) -> None:
        passes.append(number)
        if number == 3:
            stop.set()

    task = OnDigits(lambda: Watched(stop_at_the_third_pass))
    state, trainer = {"params": initial_parameters(task, 0)}, a_trainer(task)
    with pytest.raises(Stopped):
        trainer.train(an_assignment("fedavg"), state, None, stop)
    assert passes == [1, 2, 3]
    again = trainer.train(an_assignment("fedavg"), state, None, threading.Event())
    alone = a_trainer(task).train(an_assignment("fedavg"), state, None)
    assert_same_bits(again.bundles, alone.bundles)


def test_evaluation_stops_within_a_batch() -> None:
    stop, passes = threading.Event(), []

    def stop_at_once(number: int) -> None:
        passes.append(number)
        stop.set()

    task = LargelyMeasured(lambda: Watched(stop_at_once))
    state = {"params": initial_parameters(task, 0)}
    with pytest.raises(Stopped):
        Trainer(task, None, CPU).evaluate(state, stop)
    assert passes == [1]


def test_a_second_call_while_a_trainer_is_at_work_is_refused_and_the_first_is_not_disturbed() -> None:
    begun, may_go_on = threading.Event(), threading.Event()

    def wait_in_the_first_pass(number: int) -> None:
        begun.set()
        assert may_go_on.wait(timeout=60)

    task = OnDigits(lambda: Watched(wait_in_the_first_pass))
    state, trainer = {"params": initial_parameters(task, 0)}, a_trainer(task)
    results = []
    first = threading.Thread(
        target=lambda: results.append(trainer.train(an_assignment("fedavg"), state, None))
    )
    first.start()
    assert begun.wait(timeout=60)
    try:
        for second in (
            lambda: trainer.train(an_assignment("fedavg", seed=9), state, None),
            lambda: trainer.evaluate(state),
        ):
            with pytest.raises(Internal, match="called while it was at work"):
                second()
    finally:
        may_go_on.set()
        first.join(timeout=60)
    assert_same_bits(results[0].bundles, trainer.train(an_assignment("fedavg"), state, None).bundles)
