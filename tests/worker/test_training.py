# SPDX-License-Identifier: Apache-2.0
"""Local training: what a round gives, and that it is repeatable."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from protocol.algorithms import ALGORITHMS
from protocol.codec import decode_message, encode_bundle
from tests.worker.small_rounds import (
    CPU,
    OnDigits,
    a_state,
    a_trainer,
    an_assignment,
    assert_same_bits,
    digits,
)
from worker.draws import Draws
from worker.local_state import Kept
from worker.options import Numerics
from worker.stacked import Job, StackedTrainer
from worker.training import Trainer, initial_parameters

torch.set_num_threads(1)

LED_BY_THE_SERVER = ("done", "fedcm", "scaffold")
"""Without what the server sends down, these do not move, or by little, or pull back to where they were."""


# --- what a round gives ------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 1, 5])
def test_a_round_gives_exactly_the_bundles_wanted_with_the_tensors_of_params_in_their_order(
    version: int,
) -> None:
    params = initial_parameters(digits(), 0)
    trained = a_trainer().train(an_assignment(version=version), {"params": params}, None)
    assert list(trained.bundles) == (["delta", "hessian"] if version % 5 == 0 else ["delta"])
    for bundle in trained.bundles.values():
        assert [(name, array.shape) for name, array in bundle.items()] == [
            (name, array.shape) for name, array in params.items()
        ]
        assert all(array.dtype == np.float32 for array in bundle.values())
    assert (trained.num_examples, trained.local_steps) == (200, 10)


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name not in LED_BY_THE_SERVER])
def test_training_by_the_algorithms_defaults_lowers_the_loss(algorithm: str) -> None:
    trainer, params, kept = a_trainer(), initial_parameters(digits(), 0), None
    losses = []
    for version in range(1, 16):
        assignment = an_assignment(algorithm, version=version, seed=version)
        trained = trainer.train(assignment, {"params": params}, kept)
        kept = trained.kept
        losses.append(trained.metrics["train_loss"])
        params = {name: params[name] + delta for name, delta in trained.bundles["delta"].items()}
    assert losses[-1] < losses[0] / 2
    assert trainer.evaluate({"params": params}).metrics["test_accuracy"] > 0.6


def test_the_hessian_uploaded_is_the_estimate_of_the_first_step_itself_not_an_average() -> None:
    """Whatever Hessian the server has, the raw estimate at θ_0 is the same."""
    assignment, state = an_assignment(version=0), a_state("fed-sophia-shared")
    with_server_hessian = a_trainer().train(assignment, state, None)
    from_zeros = a_trainer().train(assignment, {"params": state["params"]}, None)
    hessian = with_server_hessian.bundles["hessian"]
    assert_same_bits({"hessian": hessian}, {"hessian": from_zeros.bundles["hessian"]})
    assert all((array >= 0).all() for array in hessian.values())
    assert any((array > 0).any() for array in hessian.values())


def test_metrics_say_the_loss_what_it_took_of_the_machine_and_for_sophia_how_much_was_clipped() -> None:
    state = a_state("fed-sophia")
    assert set(a_trainer().train(an_assignment("fedavg"), state, None).metrics) == {
        "train_loss",
        "train_seconds",
        "step_ms",
        "examples_per_second",
        "peak_memory_bytes",
    }
    metrics = a_trainer().train(an_assignment("fed-sophia"), state, None).metrics
    assert 0 <= metrics["clip_fraction"] <= 1
    assert "refresh_ms" in metrics


def test_the_training_loss_is_the_mean_over_the_local_steps() -> None:
    """With a step too short to matter, every loss is that of the initial parameters."""
    assignment = an_assignment("fedavg", learning_rate=1e-20)
    trained = a_trainer().train(assignment, a_state("fedavg"), None)
    model, data = digits().model(), digits().training_data()
    weights = {name: torch.from_numpy(array) for name, array in a_state("fedavg")["params"].items()}
    model.load_state_dict(weights)
    draws = Draws.seeded(assignment.seed, CPU)
    batches = [data.batch(torch.randint(200, (32,), generator=draws.batches)) for _ in range(10)]
    losses = [cross_entropy(model(batch.inputs), batch.targets).item() for batch in batches]
    assert trained.metrics["train_loss"] == pytest.approx(np.mean(losses), rel=1e-6)


def test_evaluation_averages_over_all_examples_whatever_the_batches() -> None:
    params = initial_parameters(digits(), 0)
    evaluated = Trainer(digits(), None, CPU).evaluate({"params": params})
    data = digits().evaluation_data()
    names = list(params)
    hidden = np.maximum(data.inputs.numpy() @ params[names[0]].T + params[names[1]], 0)
    logits = hidden @ params[names[2]].T + params[names[3]]
    assert evaluated.num_examples == len(data) == 360
    right = logits.argmax(axis=1) == data.targets.numpy()
    assert evaluated.metrics["test_accuracy"] == pytest.approx(right.mean())
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(360), data.targets.numpy()]
    assert evaluated.metrics["test_loss"] == pytest.approx(losses.mean(), rel=1e-5)


# --- repeatable ----------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_the_same_assignment_gives_the_same_bits_whatever_the_trainer_did_before(algorithm: str) -> None:
    fresh, used = a_trainer(), a_trainer()
    used.train(an_assignment(algorithm, seed=99), a_state(algorithm), None)
    used.evaluate(a_state(algorithm))
    torch.rand(7)  # torch's global generator is nobody's business
    results = [t.train(an_assignment(algorithm, version=5), a_state(algorithm), None) for t in (fresh, used)]
    assert_same_bits(results[0].bundles, results[1].bundles)


def test_another_seed_gives_another_delta_also_when_only_its_high_bits_differ() -> None:
    state = a_state("fedavg")
    deltas = [
        a_trainer().train(an_assignment("fedavg", seed=seed), state, None).bundles["delta"]
        for seed in (3, 4, 3 + 2**40)
    ]
    first = next(iter(deltas[0]))
    assert len({delta[first].tobytes() for delta in deltas}) == 3


def test_drawing_labels_for_the_hessian_does_not_change_which_batches_are_drawn() -> None:
    """With a step too short to matter, the training loss says which examples were seen."""
    losses = [
        a_trainer()
        .train(
            an_assignment("fed-sophia", hessian_every=every, max_round_step=1e-12),
            a_state("fed-sophia"),
            None,
        )
        .metrics["train_loss"]
        for every in (1, 10)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_state_saved_and_loaded_between_rounds_gives_the_same_bits_as_state_kept_in_memory() -> None:
    state = a_state("fed-sophia")
    trainer = a_trainer()
    kept = trainer.train(an_assignment("fed-sophia", local_steps=7), state, None).kept
    assert kept is not None and kept.step == 7 and list(kept.bundles) == ["momentum", "hessian"]
    stored = {name: b"".join(encode_bundle(name, bundle)) for name, bundle in kept.bundles.items()}
    loaded = Kept(kept.step, {name: decode_message(message)[name] for name, message in stored.items()})

    next_round = an_assignment("fed-sophia", seed=8)
    from_memory, from_disk = (trainer.train(next_round, state, k) for k in (kept, loaded))

    assert_same_bits(from_memory.bundles, from_disk.bundles)
    assert from_memory.kept is not None and from_disk.kept is not None
    assert from_memory.kept.step == from_disk.kept.step == 17
    assert_same_bits(from_memory.kept.bundles, from_disk.kept.bundles)


def test_what_a_round_returned_does_not_change_when_the_trainer_goes_on() -> None:
    trainer = a_trainer()
    trained = trainer.train(an_assignment("fed-sophia"), a_state("fed-sophia"), None)
    assert trained.kept is not None
    before = {name: array.copy() for name, array in trained.kept.bundles["momentum"].items()}
    trainer.train(an_assignment("fed-sophia"), a_state("fed-sophia"), trained.kept)
    assert_same_bits({"momentum": before}, {"momentum": trained.kept.bundles["momentum"]})


class Scaled(nn.Linear):
    """Scales its inputs, in a place of its own or where they lie."""

    def __init__(self, in_place: bool) -> None:
        super().__init__(64, 10)
        self._in_place = in_place

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs.mul_(0.5) if self._in_place else inputs * 0.5)


@pytest.mark.parametrize(("algorithm", "few"), [("fedavg", None), ("fed-sophia", 8), ("done", None)])
def test_a_model_may_write_into_its_inputs(algorithm: str, few: int | None) -> None:
    tasks = [OnDigits(lambda: Scaled(True)), OnDigits(lambda: Scaled(False))]
    params = initial_parameters(tasks[0], 0)
    state = {"params": params, "gradient": {name: np.sin(values) for name, values in params.items()}}
    assignment = an_assignment(algorithm, version=1, local_steps=5).model_copy(update={"hessian_batch": few})
    for numerics in (Numerics(), Numerics(micro_batch=12)):
        trainers = [Trainer(task, task.training_data(), CPU, numerics) for task in tasks]
        written, copied = (trainer.train(assignment, state, None) for trainer in trainers)
        assert_same_bits(written.bundles, copied.bundles)
        first, again, expected = (trainers[index].evaluate(state) for index in (0, 0, 1))
        assert first == again == expected
    # one example is tried when it is made
    rows = [np.arange(9)]
    own = [task.training_data().batch(rows[0]) for task in tasks]
    stacked = [
        StackedTrainer(task, examples, rows, CPU, stack=1, threads=1)
        for task, examples in zip(tasks, own, strict=True)
    ]
    written, copied = (each.train([Job(0, assignment, None)], state)[0] for each in stacked)
    assert_same_bits(written.bundles, copied.bundles)


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 16), nn.Dropout(0.5), nn.Linear(16, 10))


def test_a_model_that_draws_by_itself_is_repeatable_too_and_draws_nothing_when_evaluated() -> None:
    task = OnDigits(with_dropout)
    state = {"params": initial_parameters(task, 0)}
    trainer = a_trainer(task)
    before = torch.get_rng_state()
    first, second = (trainer.train(an_assignment("fedavg"), state, None) for _ in range(2))
    assert_same_bits(first.bundles, second.bundles)
    assert trainer.evaluate(state) == trainer.evaluate(state)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_dropout_is_repeatable_on_a_gpu_and_leaves_its_generator_as_it_was() -> None:
    task, cuda = OnDigits(with_dropout), torch.device("cuda")
    state = {"params": initial_parameters(task, 0)}
    before = torch.cuda.get_rng_state(cuda)
    trainer = Trainer(task, task.training_data(), cuda)
    first, second = (trainer.train(an_assignment("fedavg"), state, None) for _ in range(2))
    assert_same_bits(first.bundles, second.bundles)
    assert torch.equal(torch.cuda.get_rng_state(cuda), before)
