# SPDX-License-Identifier: Apache-2.0
"""How local steps are computed is a worker's own choice: in parts, with less in memory, less precisely."""

from functools import partial
from shutil import which

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from protocol.bound import bound_of
from protocol.errors import InvalidTask
from tests.worker.small_rounds import CPU, OnDigits, an_assignment, digits, in_a_thread_of_its_own
from worker.draws import draws_by_itself
from worker.forward import compiled, recompute_blocks
from worker.model import Arrays
from worker.options import Numerics
from worker.tasks.base import Task
from worker.training import Trained, Trainer, initial_parameters

torch.set_num_threads(1)


class Blocks(nn.Module):
    """A row of equal blocks, and a count of how often they were gone through."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first = nn.Linear(64, 16, dtype=dtype)
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Linear(16, 16, dtype=dtype), nn.GELU(), nn.Dropout(0.1)) for _ in range(3))
        )
        self.last = nn.Linear(16, 10, dtype=dtype)
        self.times = 0
        self.blocks[0][0].register_forward_pre_hook(self._count)

    def _count(self, *_: object) -> None:
        self.times += 1

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.last(self.blocks(self.first(inputs.to(self.first.weight.dtype))))
        return logits


def trained(numerics: Numerics, algorithm: str, task: Task | None = None, steps: int = 5) -> Trained:
    task = task or OnDigits(Blocks)
    params = initial_parameters(task, 0)
    trainer = Trainer(task, task.training_data().batch(torch.arange(200)), CPU, numerics)
    assignment = an_assignment(algorithm, version=5, local_steps=steps)
    # from the server: where `done` is to go down
    state = {"params": params, "gradient": {name: np.full_like(a, 0.01) for name, a in params.items()}}
    return trainer.train(assignment, state, None)


def distance(one: Arrays, other: Arrays) -> float:
    """Of two deltas, in parts of the first's length."""
    first, second = (np.concatenate([a.ravel() for a in each.values()]) for each in (one, other))
    return float(np.linalg.norm(first - second) / np.linalg.norm(first))


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold", "fed-sophia", "done"])
@pytest.mark.parametrize("examples", [1, 7, 32])
def test_a_mini_batch_in_parts_gives_the_same_round(algorithm: str, examples: int) -> None:
    """Fed-Sophia's labels are drawn part after part, from one source: the same ones."""
    whole = trained(Numerics(), algorithm, digits())
    parts = trained(Numerics(micro_batch=examples), algorithm, digits())
    assert distance(whole.bundles["delta"], parts.bundles["delta"]) < 1e-3
    assert parts.metrics["train_loss"] == pytest.approx(whole.metrics["train_loss"], rel=1e-5)


@pytest.mark.parametrize("algorithm", ["fedavg", "fed-sophia", "done"])
def test_computing_blocks_a_second_time_changes_nothing_not_even_dropout(algorithm: str) -> None:
    whole, again = (trained(Numerics(recompute=recompute), algorithm) for recompute in (False, True))
    assert distance(whole.bundles["delta"], again.bundles["delta"]) < 1e-6


class Encoder(nn.Module):
    """PyTorch's own row of blocks, which are called with words: `src_mask=`, `is_causal=`."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.last = nn.Linear(64, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(8)
        logits: Tensor = self.last(self.encoder(inputs.view(-1, 8, 8), mask=mask).flatten(1))
        return logits


def test_blocks_that_are_called_with_words_are_computed_a_second_time_too() -> None:
    task = OnDigits(Encoder)
    whole, again = (trained(Numerics(recompute=recompute), "fedavg", task) for recompute in (False, True))
    assert distance(whole.bundles["delta"], again.bundles["delta"]) < 1e-6


def test_blocks_are_gone_through_again_only_where_there_is_something_to_go_back_through() -> None:
    model = Blocks()
    recompute_blocks(model, draws=True)
    inputs = torch.ones(2, 64)
    with torch.no_grad():
        model(inputs)
    assert model.times == 1
    model(inputs).sum().backward()
    assert model.times == 3


@pytest.mark.parametrize("draws", [True, False])
def test_global_generators_are_put_back_for_the_second_time_only_where_a_model_draws(draws: bool) -> None:
    model, states = Blocks(), []
    model.blocks[0][0].register_forward_pre_hook(lambda *_: states.append(torch.get_rng_state()))
    recompute_blocks(model, draws=draws)
    logits = model(torch.ones(2, 64))
    torch.rand(1)
    logits.sum().backward()
    first, second = states
    assert torch.equal(first, second) is draws


@pytest.mark.parametrize("draws", [True, False])
def test_whether_a_model_draws_is_tried_and_taken_for_granted_where_it_cannot_be(draws: bool) -> None:
    model = nn.Dropout(0.5 if draws else 0.0)
    assert draws_by_itself(model, torch.ones(2, 64)) is draws
    assert draws_by_itself(model, torch.ones(2, 64, device="meta"))


def test_a_model_without_equal_blocks_has_nothing_to_compute_twice() -> None:
    with pytest.raises(InvalidTask, match="no row of equal blocks"):
        Trainer(digits(), None, CPU, Numerics(recompute=True))


@pytest.mark.parametrize("algorithm", ["fedavg", "fed-sophia-shared"])
def test_products_in_bfloat16_give_nearly_the_same_round_in_float32_bundles(algorithm: str) -> None:
    exact, coarse = (trained(Numerics(precision=p), algorithm) for p in ("float32", "bfloat16"))
    assert all(array.dtype == np.float32 for array in coarse.bundles["delta"].values())
    assert 0 < distance(exact.bundles["delta"], coarse.bundles["delta"]) < 0.2
    assert coarse.metrics["train_loss"] == pytest.approx(exact.metrics["train_loss"], rel=0.02)


def test_a_model_of_bfloat16_parameters_trains_by_float32_ones_and_keeps_the_bound() -> None:
    """Steps of a thousandth of what bfloat16 can tell apart: they would all be lost without."""
    task = OnDigits(lambda: Blocks(torch.bfloat16))
    params = initial_parameters(task, 0)
    assert all(array.dtype == np.float32 for array in params.values())
    assignment = an_assignment("fed-sophia", local_steps=40, max_round_step=1e-4)
    trainer = Trainer(task, task.training_data(), CPU)
    delta = trainer.train(assignment, {"params": params}, None).bundles["delta"]
    assert any(np.abs(array).max() > 5e-5 for array in delta.values())
    bound = bound_of(assignment.optimizer, assignment.settings, 40)
    assert bound is not None
    for name, array in delta.items():
        bound.from_start(f"delta/{name}", array, params[name])


@pytest.mark.filterwarnings("ignore")  # torch's own, of what it does itself
@pytest.mark.skipif(which("g++") is None, reason="PyTorch compiles by g++, which is not here")
def test_a_compiled_model_gives_the_same_rounds_and_goes_back_twice_where_an_estimate_is_taken() -> None:
    """It is made in one thread and trained in others; the first round goes back through it once a step."""
    task = OnDigits(lambda: nn.Sequential(nn.Linear(64, 16), nn.GELU(), nn.Linear(16, 10)))
    state, data = {"params": initial_parameters(task, 0)}, task.training_data().batch(torch.arange(200))
    deltas = []
    for compile_ in (False, True):
        trainer = in_a_thread_of_its_own(lambda c=compile_: Trainer(task, data, CPU, Numerics(compile=c)))
        for algorithm in ("fedavg", "fed-sophia"):
            train = partial(trainer.train, an_assignment(algorithm, local_steps=5), state, None)
            deltas.append(in_a_thread_of_its_own(train).bundles["delta"])
    for plain, fast in zip(deltas[:2], deltas[2:], strict=True):
        assert distance(plain, fast) < 1e-4


@pytest.mark.filterwarnings("ignore")  # torch's own, of what it does itself
@pytest.mark.skipif(which("g++") is None, reason="PyTorch compiles by g++, which is not here")
def test_more_shapes_are_compiled_for_than_torch_would_by_itself() -> None:
    """What is compiled does not go through the function's own code, but where it is traced."""
    traced = 0

    def doubled(values: Tensor) -> Tensor:
        nonlocal traced
        if torch.compiler.is_compiling():
            traced = len(values)
        return values * 2

    function = in_a_thread_of_its_own(lambda: compiled(doubled))
    for size in range(2, 12):
        function(torch.ones(size))
    assert traced == 11
