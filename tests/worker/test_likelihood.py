# SPDX-License-Identifier: Apache-2.0
"""Likelihoods: losses against torch's own, draws against the distribution they come from."""

import pytest
import torch

from protocol.errors import InvalidTask
from tests.worker.watched import Watched
from worker.tasks.likelihood import LIKELIHOODS, PADDING, likelihood_named


def a_generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5)], ids=["examples", "tokens"])
def test_categorical_labels_have_the_shape_of_targets_and_every_one_is_a_loss_term(
    shape: tuple[int, ...],
) -> None:
    categorical = LIKELIHOODS["categorical"]
    outputs = torch.randn(*shape, generator=a_generator())
    drawn = categorical.sample(outputs, torch.zeros(shape[:-1]), a_generator())
    assert drawn.shape == shape[:-1]
    assert categorical.num_terms(drawn) == 6
    expected = -torch.log_softmax(outputs, -1).gather(-1, drawn.unsqueeze(-1)).mean()
    torch.testing.assert_close(categorical.loss(outputs, drawn), expected)


def test_bernoulli_draws_have_their_probability_and_gaussian_ones_unit_variance() -> None:
    targets = torch.zeros(40_000)
    bernoulli = LIKELIHOODS["bernoulli"].sample(torch.full((40_000,), 1.0), targets, a_generator())
    assert bernoulli.mean().item() == pytest.approx(torch.sigmoid(torch.tensor(1.0)).item(), abs=0.012)
    gaussian = LIKELIHOODS["gaussian"].sample(torch.full((40_000,), 3.0), targets, a_generator())
    assert gaussian.mean().item() == pytest.approx(3.0, abs=0.025)
    assert gaussian.var().item() == pytest.approx(1.0, abs=0.04)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_outputs_in_bfloat16_have_the_loss_that_they_have_in_float32(name: str) -> None:
    outputs = torch.randn(64, 3, generator=a_generator()).bfloat16() * 8
    targets = torch.arange(64) % 3 if name == "categorical" else torch.arange(192).reshape(64, 3) % 2 * 1.001
    likelihood = LIKELIHOODS[name]
    torch.testing.assert_close(likelihood.loss(outputs, targets), likelihood.loss(outputs.float(), targets))


def test_draws_of_large_outputs_in_bfloat16_vary_as_those_in_float32_do() -> None:
    """bfloat16 has no number between 2992 and 3008, and none between 1 - 1/256 and 1."""
    outputs = torch.full((40_000,), 3000.0).bfloat16()
    gaussian = LIKELIHOODS["gaussian"].sample(outputs, outputs, a_generator())
    assert (gaussian - outputs.float()).var().item() == pytest.approx(1.0, abs=0.04)
    bernoulli = LIKELIHOODS["bernoulli"].sample(
        torch.full((400_000,), 7.0).bfloat16(), outputs, a_generator()
    )
    assert 1 - bernoulli.mean().item() == pytest.approx(torch.sigmoid(torch.tensor(-7.0)).item(), abs=3e-4)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_draws_are_the_same_however_the_outputs_lie_in_memory(name: str) -> None:
    """A stack's lie otherwise than those of a worker by itself."""
    outputs = torch.randn(20, 6, generator=a_generator())
    targets = torch.zeros(20, dtype=torch.int64) if name == "categorical" else torch.zeros(20, 6)
    across = outputs.T.contiguous().T
    drawn, again = (LIKELIHOODS[name].sample(each, targets, a_generator()) for each in (outputs, across))
    assert torch.equal(drawn, again)


def test_the_gaussian_loss_is_half_the_mean_squared_error() -> None:
    loss = LIKELIHOODS["gaussian"].loss(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [5.0]]))
    assert loss.item() == pytest.approx((0 + 9) / 2 / 2)


@pytest.mark.parametrize("name", sorted(LIKELIHOODS))
def test_metrics_are_sums_so_that_two_batches_add_up_to_one(name: str) -> None:
    likelihood = LIKELIHOODS[name]
    outputs = torch.randn(10, 4, generator=a_generator())
    true = torch.zeros(10) if name == "categorical" else torch.zeros(10, 4)
    targets = likelihood.sample(outputs, true, a_generator())
    whole = likelihood.metrics(outputs, targets)
    parts = [likelihood.metrics(outputs[rows], targets[rows]) for rows in (slice(3), slice(3, None))]
    for metric, value in whole.items():
        assert sum(part[metric] for part in parts) == pytest.approx(value, rel=1e-5)


def test_accuracy_counts_right_answers() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    assert LIKELIHOODS["categorical"].metrics(logits, torch.tensor([0, 1, 1]))["accuracy"] == 2
    assert LIKELIHOODS["bernoulli"].metrics(logits - 1.5, (logits > 2.5).float())["accuracy"] == 5


@pytest.mark.parametrize("name", ["bernoulli", "gaussian"])
def test_targets_that_would_broadcast_against_outputs_are_refused(name: str) -> None:
    with pytest.raises(InvalidTask, match=r"expected shape \(3, 1\), got \(3,\)"):
        LIKELIHOODS[name].loss(torch.zeros(3, 1), torch.zeros(3))


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 2.0), (0.0, float("nan"))])
def test_targets_that_are_neither_yes_nor_no_are_refused_with_what_they_are(low: float, high: float) -> None:
    bernoulli = LIKELIHOODS["bernoulli"]
    with pytest.raises(InvalidTask, match="targets: expected 0 or 1, got some from"):
        bernoulli.of_data(torch.tensor([[low], [high]]))
    for fine in (
        torch.tensor([True, False]),
        torch.tensor([0.0, 0.3, 1.0]),
        torch.tensor([0, 1]),
        torch.zeros(0, 1),
    ):
        assert bernoulli.of_data(fine) is bernoulli


# --- padding -------------------------------------------------------------------------------------


def test_padding_is_no_loss_term_and_counts_neither_as_right_nor_as_wrong() -> None:
    outputs = torch.randn(2, 3, 5, generator=a_generator())
    targets = torch.tensor([[1, 2, PADDING], [3, PADDING, PADDING]])
    kept, categorical = targets != PADDING, LIKELIHOODS["categorical"]
    assert categorical.num_terms(targets) == 3
    torch.testing.assert_close(
        categorical.loss(outputs, targets), categorical.loss(outputs[kept], targets[kept])
    )
    padded, bare = (
        categorical.metrics(outputs, targets),
        categorical.metrics(outputs[kept], targets[kept]),
    )
    assert padded == pytest.approx(bare)


def test_no_label_is_drawn_for_padding() -> None:
    targets = torch.tensor([[1, 2, PADDING], [3, PADDING, PADDING]])
    drawn = LIKELIHOODS["categorical"].sample(torch.zeros(2, 3, 5), targets, a_generator())
    assert torch.equal(drawn == PADDING, targets == PADDING)


def test_a_batch_of_nothing_but_padding_is_refused_by_name() -> None:
    with pytest.raises(InvalidTask, match="every one of a batch is -100, which marks padding"):
        LIKELIHOODS["categorical"].loss(torch.zeros(3, 5), torch.full((3,), PADDING))


def test_where_the_data_has_no_padding_no_batch_is_looked_into() -> None:
    targets = torch.tensor([[1, 2, 0], [3, 4, 0]])
    outputs, categorical = torch.randn(2, 3, 5, generator=a_generator()), LIKELIHOODS["categorical"]
    known = categorical.of_data(targets)
    with Watched() as watched:
        loss = known.loss(outputs, targets)
        assert known.num_terms(known.sample(outputs, targets, a_generator())) == 6
    assert not watched.waited_for_the_device
    assert torch.equal(loss, categorical.loss(outputs, targets))
    with Watched() as watched:
        categorical.loss(outputs, targets)
    assert watched.waited_for_the_device


def test_where_the_data_has_padding_it_stays_padding_and_a_batch_of_nothing_else_is_refused() -> None:
    targets = torch.tensor([[1, PADDING], [PADDING, PADDING]])
    known = LIKELIHOODS["categorical"].of_data(targets)
    assert known.num_terms(targets) == 1
    assert torch.equal(
        known.sample(torch.zeros(2, 2, 5), targets, a_generator()) == PADDING, targets == PADDING
    )
    with pytest.raises(InvalidTask, match="every one of a batch is -100"):
        known.loss(torch.zeros(1, 2, 5), targets[1:])


def test_an_unknown_likelihood_is_refused_with_the_menu() -> None:
    with pytest.raises(InvalidTask, match="categorical, bernoulli, gaussian"):
        likelihood_named("poisson")
