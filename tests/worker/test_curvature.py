# SPDX-License-Identifier: Apache-2.0
"""Estimates of the Hessian's diagonal, and products with the Hessian, against exact curvature."""

from weakref import ReferenceType, ref

import pytest
import torch
from torch import Tensor, nn

from protocol.errors import InvalidMessage, InvalidTask
from protocol.estimates import HESSIAN_ESTIMATORS
from worker.curvature import ESTIMATORS, estimator_named, hessian_vector_product
from worker.flat import Layout
from worker.forward import Forward, OneWorker
from worker.options import Numerics
from worker.slope import Model, Slope, Wanted, parts_of, slope_of
from worker.tasks.base import Examples
from worker.tasks.likelihood import LIKELIHOODS, PADDING

DRAWS = 4000

torch.set_num_threads(1)


CPU = torch.device("cpu")


class Linear(nn.Module):
    """Outputs inputs @ weight; `unused` has no part in them."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight


def slope(
    model: nn.Module,
    batch: Examples,
    likelihood: str,
    estimator: str,
    generator: torch.Generator | None = None,
    *,
    at_most: int | None = None,
    num_estimated: int | None = None,
) -> Slope:
    """The loss's, with an estimate, as a trainer takes it."""
    wanted = Wanted(estimator_named(estimator), num_estimated)
    forward = Forward(
        model, LIKELIHOODS[likelihood], CPU, Numerics(), twice_differentiable=wanted.second_order
    )
    objective = OneWorker(forward, generator or torch.Generator().manual_seed(3))
    parameters = tuple(model.parameters())
    num_terms = LIKELIHOODS[likelihood].num_terms
    return slope_of(
        lambda first: parts_of(batch, first, at_most, num_terms),
        wanted,
        Model(objective, parameters, layout_of(model)),
    )


def layout_of(model: nn.Module) -> Layout:
    return Layout(tuple(parameter.shape for parameter in model.parameters()))


def estimates(
    inputs: Tensor,
    weight: Tensor,
    likelihood: str,
    draws: int = DRAWS,
    targets: Tensor | None = None,
    estimator: str = "gauss-newton-bartlett",
) -> Tensor:
    """`draws` independent estimates for a linear model's weight, stacked."""
    generator = torch.Generator().manual_seed(3)
    model = Linear(weight)
    if targets is None:
        shape = (*inputs.shape[:-1], weight.shape[1])
        targets = torch.zeros(shape[:-1] if likelihood == "categorical" else shape).long()
    found = []
    for _ in range(draws):
        curvature = slope(model, Examples(inputs, targets), likelihood, estimator, generator).curvature
        assert curvature is not None
        of_weight, of_unused = layout_of(model).views(curvature)
        assert of_unused.tolist() == [0.0, 0.0], "the outputs do not depend on it"
        found.append(of_weight)
    return torch.stack(found)


def assert_mean_is(expected: Tensor, drawn: Tensor, standard_errors: float = 5.0) -> None:
    error = drawn.std(dim=0) / len(drawn) ** 0.5
    assert ((drawn.mean(dim=0) - expected).abs() <= standard_errors * error).all()
    assert (error <= 0.1 * expected.abs().max()).all(), "too few draws to say anything"


def a_linear_model(outputs: int, *batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    inputs = torch.randn(*batch, 4, generator=generator)
    return inputs, torch.randn(4, outputs, generator=generator)


def exact_softmax_diagonal(inputs: Tensor, weight: Tensor) -> Tensor:
    """diag of the Gauss–Newton matrix of softmax regression: mean over terms of x_d²·p_c·(1 − p_c)."""
    rows = inputs.flatten(0, -2)
    p = torch.softmax(rows @ weight, dim=-1)
    return torch.einsum("nd,nc->dc", rows.square(), p * (1 - p)) / len(rows)


def test_it_is_the_exact_gauss_newton_diagonal_of_a_softmax_regression_in_expectation() -> None:
    inputs, weight = a_linear_model(3, 16)
    assert_mean_is(exact_softmax_diagonal(inputs, weight), estimates(inputs, weight, "categorical"))


def test_a_language_models_tokens_are_its_loss_terms() -> None:
    inputs, weight = a_linear_model(3, 4, 6)  # (B, T, features): 24 terms, not 4
    assert_mean_is(exact_softmax_diagonal(inputs, weight), estimates(inputs, weight, "categorical"))


def test_padding_is_no_loss_term_so_it_is_exact_for_the_tokens_that_are_left() -> None:
    inputs, weight = a_linear_model(3, 4, 6)
    targets = torch.zeros(4, 6).long()
    targets[:, 4:] = targets[3, :] = PADDING  # 12 of 24 tokens are left
    expected = exact_softmax_diagonal(inputs[targets != PADDING], weight)
    assert_mean_is(expected, estimates(inputs, weight, "categorical", targets=targets))


def test_it_is_exact_in_expectation_for_a_logistic_regression() -> None:
    inputs, weight = a_linear_model(1, 16)
    p = torch.sigmoid(inputs @ weight)
    expected = (inputs.square() * p * (1 - p)).mean(dim=0).unsqueeze(1)
    assert_mean_is(expected, estimates(inputs, weight, "bernoulli"))


def test_it_is_exact_in_expectation_for_a_least_squares_regression_of_two_values() -> None:
    # the mean is over 2·16 values, and each output depends on its own column of the weight only
    inputs, weight = a_linear_model(2, 16)
    expected = (inputs.square().mean(dim=0) / 2).unsqueeze(1).expand(4, 2)
    assert_mean_is(expected, estimates(inputs, weight, "gaussian"))


def test_it_is_never_negative_and_the_same_seed_gives_the_same_estimate() -> None:
    inputs, weight = a_linear_model(3, 16)
    first, second = (estimates(inputs, weight, "categorical", draws=5) for _ in range(2))
    assert (first >= 0).all()
    assert torch.equal(first, second)


def test_hutchinsons_estimate_is_the_exact_diagonal_of_a_hessian_also_where_it_is_negative() -> None:
    """tanh bends the loss down in places: a diagonal with both signs, by double precision autograd."""
    generator = torch.Generator().manual_seed(5)
    inputs, weight = torch.randn(8, 4, generator=generator), torch.randn(4, 2, generator=generator)
    targets = torch.randn(8, 2, generator=generator)

    class Bent(Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return torch.tanh(inputs @ self.weight)

    def loss(weight: Tensor) -> Tensor:
        return (torch.tanh(inputs @ weight) - targets).square().mean() / 2

    exact = torch.autograd.functional.hessian(loss, weight).reshape(8, 8).diagonal().reshape(4, 2)
    assert (exact < 0).any() and (exact > 0).any()
    model, drawing = Bent(weight), torch.Generator().manual_seed(1)
    drawn = []
    for _ in range(DRAWS):
        curvature = slope(model, Examples(inputs, targets), "gaussian", "hutchinson", drawing).curvature
        assert curvature is not None
        drawn.append(layout_of(model).views(curvature)[0])
    assert_mean_is(exact, torch.stack(drawn))


def test_the_empirical_fisher_is_the_square_of_the_steps_own_gradient_times_its_loss_terms() -> None:
    inputs, weight = a_linear_model(3, 4, 6)
    targets = torch.arange(24).reshape(4, 6) % 3
    found = slope(Linear(weight), Examples(inputs, targets), "categorical", "empirical-fisher")
    assert found.curvature is not None
    torch.testing.assert_close(found.curvature, 24 * found.gradient.square())


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_mini_batch_in_parts_has_the_loss_and_the_gradient_of_the_whole(
    likelihood: str, estimator: str
) -> None:
    inputs, weight = a_linear_model(3, 10)
    targets = torch.arange(10) % 3 if likelihood == "categorical" else (inputs[:, :3] > 0).float()
    batch = Examples(inputs, targets)
    whole = slope(Linear(weight), batch, likelihood, estimator)
    for at_most in (1, 3, 10, 99):
        parts = slope(Linear(weight), batch, likelihood, estimator, at_most=at_most)
        torch.testing.assert_close(parts.loss, whole.loss)
        torch.testing.assert_close(parts.gradient, whole.gradient)
        if estimator == "empirical-fisher":  # the one that draws nothing
            torch.testing.assert_close(parts.curvature, whole.curvature)


@pytest.mark.parametrize("at_most", [None, 1])
def test_an_estimate_in_parts_is_exact_in_expectation_as_that_of_the_whole(at_most: int | None) -> None:
    """ĝ is of the mean over all parts, and B counts the terms of all: not a mean of the parts' estimates."""
    inputs, weight = a_linear_model(3, 6)
    generator, model, targets = torch.Generator().manual_seed(3), Linear(weight), torch.zeros(6).long()
    drawn = []
    for _ in range(DRAWS):
        found = slope(
            model,
            Examples(inputs, targets),
            "categorical",
            "gauss-newton-bartlett",
            generator,
            at_most=at_most,
        )
        assert found.curvature is not None
        drawn.append(layout_of(model).views(found.curvature)[0])
    assert_mean_is(exact_softmax_diagonal(inputs, weight), torch.stack(drawn))


def test_parts_count_by_their_loss_terms_where_some_are_padding() -> None:
    inputs, weight = a_linear_model(3, 4, 6)
    targets = torch.zeros(4, 6).long()
    targets[0, 1:] = targets[1] = PADDING  # 1, 0, 6 and 6 terms
    batch = Examples(inputs, targets)
    whole = slope(Linear(weight), batch, "categorical", "empirical-fisher")
    parts = slope(Linear(weight), batch, "categorical", "empirical-fisher", at_most=1)
    torch.testing.assert_close(parts.gradient, whole.gradient)
    torch.testing.assert_close(parts.curvature, whole.curvature)


@pytest.mark.parametrize("at_most", [None, 2, 3])
def test_an_estimate_may_be_of_the_first_examples_alone_while_the_gradient_is_of_all(
    at_most: int | None,
) -> None:
    inputs, weight = a_linear_model(3, 10)
    batch = Examples(inputs, torch.arange(10) % 3)
    first = batch.batch(torch.arange(4))
    found = slope(Linear(weight), batch, "categorical", "empirical-fisher", at_most=at_most, num_estimated=4)
    torch.testing.assert_close(
        found.gradient, slope(Linear(weight), batch, "categorical", "empirical-fisher").gradient
    )
    torch.testing.assert_close(
        found.curvature, slope(Linear(weight), first, "categorical", "empirical-fisher").curvature
    )


@pytest.mark.parametrize("num_estimated", [None, 5])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_of_a_part_that_has_been_gone_through_nothing_is_held_while_the_next_is(
    estimator: str, num_estimated: int | None
) -> None:
    class Watched(Linear):
        """Notes how many of its earlier outputs there still are whenever it is gone through."""

        def __init__(self) -> None:
            super().__init__(torch.ones(4, 3))
            self.given: list[ReferenceType[Tensor]] = []
            self.held: list[int] = []

        def forward(self, inputs: Tensor) -> Tensor:
            self.held.append(sum(outputs() is not None for outputs in self.given))
            outputs = super().forward(inputs)
            self.given.append(ref(outputs))
            return outputs

    model, batch = Watched(), Examples(torch.ones(6, 4), torch.zeros(6).long())
    slope(model, batch, "categorical", estimator, at_most=2, num_estimated=num_estimated)
    assert model.held == [0] * (3 if num_estimated is None else 6)


def test_more_examples_than_there_are_means_all_of_them() -> None:
    batch = Examples(*a_linear_model(3, 10)[:1], torch.zeros(10).long())
    assert [len(part.targets) for part in parts_of(batch, 99, None, torch.numel)] == [10]


def test_an_estimate_of_nothing_but_padding_is_refused_by_name() -> None:
    targets = torch.tensor([PADDING, PADDING, 1, 2])
    with pytest.raises(InvalidTask, match="every one of 2 examples is -100"):
        slope(
            Linear(torch.ones(4, 3)),
            Examples(torch.ones(4, 4), targets),
            "categorical",
            "gauss-newton-bartlett",
            num_estimated=2,
        )


def test_outputs_that_are_not_numbers_give_an_estimate_that_is_none() -> None:
    inputs, weight = a_linear_model(3, 16)
    [found] = estimates(inputs * float("nan"), weight, "categorical", draws=1)
    assert found.isnan().all()


def test_the_worker_has_every_estimator_that_a_run_may_choose_and_no_other() -> None:
    assert set(ESTIMATORS) == set(HESSIAN_ESTIMATORS)


def test_an_unknown_estimator_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidMessage, match="'oracle': this worker has gauss-newton-bartlett"):
        estimator_named("oracle")


# --- the Hessian's product with a vector ---------------------------------------------------------


def test_a_product_is_that_of_the_whole_hessian() -> None:
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(16, 4, generator=generator)
    shapes = [(3, 4), (1, 3)]
    flat, vector = (torch.randn(15, generator=generator, dtype=torch.float64) for _ in range(2))

    def loss(flat: Tensor) -> Tensor:
        first, second = flat[:12].reshape(shapes[0]), flat[12:].reshape(shapes[1])
        return (torch.tanh(inputs.double() @ first.T) @ second.T).square().mean()

    def parts(flat: Tensor) -> list[Tensor]:
        return [flat[:12].reshape(shapes[0]), flat[12:].reshape(shapes[1])]

    parameters = [part.clone().requires_grad_() for part in parts(flat)]
    value = loss(torch.cat([parameter.flatten() for parameter in parameters]))
    gradients = torch.autograd.grad(value, parameters, create_graph=True)
    product = hessian_vector_product(gradients, parameters, parts(vector))

    expected = torch.autograd.functional.hessian(loss, flat) @ vector
    assert [part.shape for part in product] == [parameter.shape for parameter in parameters]
    torch.testing.assert_close(torch.cat([part.flatten() for part in product]), expected)


def test_where_the_loss_does_not_bend_the_product_is_zero() -> None:
    """A loss that is a line in one parameter, a parabola in another, and knows nothing of a third."""
    line, parabola, unknown = (torch.ones(2, requires_grad=True) for _ in range(3))
    parameters, vector = [line, parabola, unknown], [torch.ones(2) for _ in range(3)]
    for loss, expected in ((line.sum() + parabola.square().sum(), 2), (line.sum(), 0)):
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
        product = hessian_vector_product(gradients, parameters, vector)
        assert [part.tolist() for part in product] == [[0, 0], [expected] * 2, [0, 0]]
