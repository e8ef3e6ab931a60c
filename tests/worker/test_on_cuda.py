# SPDX-License-Identifier: Apache-2.0
"""What a GPU gives beside a CPU, and that nothing waits for it at every step. Only where there is one."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from protocol.messages import Assignment
from tests.worker.small_rounds import (
    CPU,
    OnDigits,
    an_assignment,
    assert_same_bits,
    digits,
    in_a_thread_of_its_own,
)
from worker.model import Arrays
from worker.options import Numerics
from worker.recording import STEPS_BEFORE
from worker.stacked import Job, StackedTrainer
from worker.tasks.base import Examples, Task
from worker.tasks.gpt import Gpt
from worker.training import Trained, Trainer, initial_parameters

if not torch.cuda.is_available():
    pytest.skip("this machine has no CUDA device", allow_module_level=True)

CUDA = torch.device("cuda")
# by a thread, which ends what waits in torch for a device that does not answer, and says where each thread is
pytestmark = pytest.mark.timeout(180, method="thread")


class Letters(Task):
    """A GPT small enough for a test, on random letters."""

    name = "letters"

    def model(self) -> nn.Module:
        return Gpt(32, context=16, width=64, heads=4, blocks=2)

    def training_data(self) -> Examples:
        letters = torch.randint(32, (64, 17), generator=torch.Generator().manual_seed(0))
        return Examples(letters[:, :-1], letters[:, 1:])

    def evaluation_data(self) -> Examples:
        return self.training_data()


def trained(
    task: Task, assignment: Assignment, device: torch.device = CUDA, numerics: Numerics | None = None
) -> Trained:
    params = initial_parameters(task, 0)
    # from the server: where `done` is to go down
    state = {"params": params, "gradient": {name: np.full_like(a, 0.01) for name, a in params.items()}}
    return Trainer(task, task.training_data(), device, numerics or Numerics()).train(assignment, state, None)


def distance(one: Arrays, other: Arrays) -> float:
    """Of two deltas, in parts of the first's length."""
    first, second = (np.concatenate([a.ravel() for a in each.values()]) for each in (one, other))
    return float(np.linalg.norm(first - second) / np.linalg.norm(first))


@pytest.mark.parametrize("task", [digits(), Letters()], ids=["digits", "letters"])
@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold", "done"])
def test_what_draws_no_labels_gives_the_same_round_as_on_a_cpu(task: Task, algorithm: str) -> None:
    """`done` wants products with the Hessian, which fused attention cannot give: it is not used then."""
    assignment = an_assignment(algorithm, version=5)
    here, there = (trained(task, assignment, device).bundles["delta"] for device in (CUDA, CPU))
    assert distance(there, here) < 1e-3


@pytest.mark.parametrize("estimator", ["gauss-newton-bartlett", "empirical-fisher", "hutchinson"])
def test_every_estimate_can_be_taken_of_fused_attention_and_of_the_first_examples(estimator: str) -> None:
    assignment = an_assignment("fed-sophia", hessian_every=2)
    assignment = assignment.model_copy(update={"hessian_estimator": estimator, "hessian_batch": 8})
    found = []
    for numerics in (Numerics(), Numerics(micro_batch=8), Numerics(precision="bfloat16", recompute=True)):
        done = trained(Letters(), assignment, numerics=numerics)
        assert done.kept is not None
        found.append(done.kept.bundles["hessian"])
        assert any((array != 0).any() for array in found[-1].values())
    if estimator == "empirical-fisher":  # the one that draws nothing
        whole, in_parts, coarse = found
        assert distance(whole, in_parts) < 1e-3
        assert distance(whole, coarse) < 0.1


@pytest.mark.parametrize("algorithm", ["fedavg", "fed-sophia", "fed-sophia-shared", "scaffold"])
def test_stacked_workers_get_what_each_gets_alone(algorithm: str) -> None:
    task = digits()
    examples, params = task.training_data(), initial_parameters(task, 0)
    rows = [np.arange(200 * i, 200 * i + 200) for i in range(5)]
    assignments = [an_assignment(algorithm, version=5, seed=i) for i in range(5)]
    jobs = [Job(i, a.model_copy(update={"slot": i}), None) for i, a in enumerate(assignments)]
    stacks = StackedTrainer(task, examples, rows, CUDA, stack=5, threads=1)
    together = stacks.train(jobs, {"params": params})
    for job, one in zip(jobs, together, strict=True):
        trainer = Trainer(task, examples.batch(rows[job.worker]), CUDA)
        alone = trainer.train(job.assignment, {"params": params}, None)
        for bundle in alone.bundles:
            assert distance(alone.bundles[bundle], one.bundles[bundle]) < 1e-3


@pytest.mark.filterwarnings("ignore")  # torch's own, of what is deprecated in it
def test_a_compiled_round_in_bfloat16_is_nearly_that_of_float32() -> None:
    assignment = an_assignment("fed-sophia", hessian_every=3).model_copy(update={"hessian_batch": 8})
    fast = Numerics(precision="bfloat16", compile=True)
    exact, coarse = trained(Letters(), assignment), trained(Letters(), assignment, numerics=fast)
    assert coarse.metrics["train_loss"] == pytest.approx(exact.metrics["train_loss"], rel=0.02)
    plain = an_assignment("fedavg")
    exact, coarse = trained(Letters(), plain), trained(Letters(), plain, numerics=fast)
    assert distance(exact.bundles["delta"], coarse.bundles["delta"]) < 0.05


@pytest.mark.filterwarnings("ignore")  # torch's own, of what is deprecated in it
def test_a_compiled_round_is_recorded_too_and_goes_back_twice_where_an_estimate_is_taken() -> None:
    """The rounds without an estimate come first: what they compile is gone back through once a step."""
    task, fast = Letters(), Numerics(precision="bfloat16", compile=True)
    state = {"params": initial_parameters(task, 0)}
    plain, recorded = (
        in_a_thread_of_its_own(partial(Trainer, task, task.training_data(), CUDA, numerics))
        for numerics in (fast, replace(fast, record=True))
    )
    for assignment in (an_assignment("fedavg"), an_assignment("fed-sophia", hessian_every=3, local_steps=12)):
        losses = [
            in_a_thread_of_its_own(partial(trainer.train, assignment, state, None)).metrics["train_loss"]
            for trainer in (plain, recorded)
        ]
        assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert recorded._recorder is not None and len(recorded._recorder._recordings) == 2


@pytest.mark.parametrize("batch", [None, 8])
def test_a_recorded_step_is_the_step_itself(batch: int | None) -> None:
    """Of what draws nothing: a recording may draw other labels. The trainer evaluates between rounds."""
    assignment = an_assignment("fed-sophia", hessian_every=3, local_steps=20)
    assignment = assignment.model_copy(
        update={"hessian_estimator": "empirical-fisher", "hessian_batch": batch}
    )
    task = Letters()
    state = {"params": initial_parameters(task, 0)}
    plain = Trainer(task, task.training_data(), CUDA)
    fast = Trainer(task, task.training_data(), CUDA, Numerics(record=True))
    for seed in (1, 2):
        rounds = [
            trainer.train(assignment.model_copy(update={"seed": seed}), state, None)
            for trainer in (plain, fast)
        ]
        assert distance(rounds[0].bundles["delta"], rounds[1].bundles["delta"]) < 0.02
        assert rounds[1].metrics["train_loss"] == pytest.approx(rounds[0].metrics["train_loss"], rel=1e-3)
        fast.evaluate({"params": rounds[1].bundles["delta"]})
    assert fast._recorder is not None and len(fast._recorder._recordings) == 2


def test_what_is_recorded_draws_by_the_seed_of_its_round() -> None:
    """Dropout and labels; in the first round some steps are computed as they are."""
    task = OnDigits(lambda: nn.Sequential(nn.Linear(64, 32), nn.Dropout(0.2), nn.Linear(32, 10)))
    state = {"params": initial_parameters(task, 0)}
    trainer = Trainer(task, task.training_data(), CUDA, Numerics(record=True))
    rounds = []
    for seed in (1, 2, 3, 2):
        assignment = an_assignment("fed-sophia", seed=seed, hessian_every=3, local_steps=12)
        rounds.append(trainer.train(assignment, state, None).bundles)
    assert trainer._recorder is not None and len(trainer._recorder._recordings) == 2
    assert_same_bits(rounds[1], rounds[3])
    assert distance(rounds[1]["delta"], rounds[2]["delta"]) > 0.01


def test_a_round_in_another_thread_than_the_last_is_recorded_too() -> None:
    """The second thread has multiplied nothing before it is to record what the first one has seen."""
    task = Letters()
    state, steps = {"params": initial_parameters(task, 0)}, an_assignment("fedavg", local_steps=2)
    trainer = Trainer(task, task.training_data(), CUDA, Numerics(record=True))
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        for executor in (first, second, second):
            executor.submit(trainer.train, steps, state, None).result()
    assert trainer._recorder is not None and len(trainer._recorder._recordings) == 1


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="this machine has no second CUDA device")
def test_on_the_second_device_a_round_is_what_it_is_on_the_first_recorded_or_not() -> None:
    assignment = an_assignment("fed-sophia", hessian_every=3).model_copy(
        update={"hessian_estimator": "empirical-fisher"}
    )
    for numerics in (Numerics(), Numerics(record=True)):
        first, second = (
            trained(Letters(), assignment, torch.device("cuda", index), numerics) for index in range(2)
        )
        assert distance(first.bundles["delta"], second.bundles["delta"]) < 0.02
        assert second.metrics["step_ms"] > 0
    assert torch.cuda.current_device() == 0


class Waits(nn.Module):
    """Draws, and reads a number from the device: that cannot be recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 10), nn.Dropout(0.1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(inputs)
        return logits + 0.0 * logits.sum().item()


def test_a_step_that_cannot_be_recorded_is_computed_as_it_is_and_leaves_nothing_behind() -> None:
    task, stream = OnDigits(Waits), torch.cuda.current_stream()
    state = {"params": initial_parameters(task, 0)}
    trainers = [
        Trainer(task, task.training_data(), CUDA, Numerics(record=record)) for record in (False, True)
    ]
    for seed in (1, 2):
        assignment = an_assignment("fed-sophia", seed=seed, hessian_every=3, local_steps=12)
        plain, tried = (trainer.train(assignment, state, None).bundles["delta"] for trainer in trainers)
        assert distance(plain, tried) < 1e-3  # labels are drawn as before
    assert torch.cuda.current_stream() == stream
    assert trainers[1]._recorder is not None and not trainers[1]._recorder._recordings

    reserved = torch.cuda.memory_reserved()
    torch.empty(2**28, device=CUDA)
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= reserved

    other = Trainer(Letters(), Letters().training_data(), CUDA, Numerics(record=True))
    other.train(an_assignment("fedavg"), {"params": initial_parameters(Letters(), 0)}, None)
    assert other._recorder is not None and len(other._recorder._recordings) == 1


def test_a_model_that_draws_nothing_is_recorded_also_where_its_blocks_are_computed_twice() -> None:
    task = Letters()
    trainer = Trainer(task, task.training_data(), CUDA, Numerics(record=True, recompute=True))
    trainer.train(an_assignment("fedavg"), {"params": initial_parameters(task, 0)}, None)
    assert trainer._recorder is not None and len(trainer._recorder._recordings) == 1


@pytest.mark.parametrize("record", [False, True], ids=["computed", "recorded"])
@pytest.mark.parametrize("algorithm", ["fedavg", "fed-sophia", "fed-sophia-shared"])
def test_no_step_waits_for_the_device(algorithm: str, record: bool) -> None:
    task = OnDigits(lambda: nn.Linear(64, 10))
    params = initial_parameters(task, 0)
    trainer = Trainer(task, task.training_data(), CUDA, Numerics(record=record))

    def waits(steps: int) -> int:
        assignment = an_assignment(algorithm, version=5, local_steps=steps)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                trainer.train(assignment, {"params": params}, None)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return len(caught)

    for _ in range(STEPS_BEFORE + 1):  # what is loaded and compiled at the first round, and then recorded
        waits(30)
    assert waits(10) == waits(60)


def test_a_round_tells_what_it_took_of_the_device() -> None:
    metrics = trained(Letters(), an_assignment("fed-sophia", local_steps=25)).metrics
    assert metrics["step_ms"] > 0 and metrics["refresh_ms"] > 0
    assert metrics["tokens_per_second"] == pytest.approx(16 * metrics["examples_per_second"])
    assert metrics["peak_memory_bytes"] > 1e5
