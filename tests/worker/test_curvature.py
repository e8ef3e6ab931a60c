# SPDX-License-Identifier: Apache-2.0
"""The Gauss–Newton–Bartlett estimate, and products with the Hessian, against exact curvature."""

import pytest
import torch
from torch import Tensor

from protocol.errors import NotFinite
from worker.curvature import gauss_newton_bartlett, hessian_vector_product
from worker.tasks.likelihood import LIKELIHOODS, PADDING

DRAWS = 4000

torch.set_num_threads(1)


def estimates(
    inputs: Tensor, weight: Tensor, likelihood: str, draws: int = DRAWS, targets: Tensor | None = None
) -> Tensor:
    """`draws` independent estimates for a linear model's weight, stacked."""
    generator = torch.Generator().manual_seed(3)
    outputs = inputs @ weight
    if targets is None:
        targets = torch.zeros(outputs.shape[:-1] if likelihood == "categorical" else outputs.shape)
    chosen = LIKELIHOODS[likelihood]
    return torch.stack(
        [
            gauss_newton_bartlett(outputs, targets, [weight], chosen, generator, retain_graph=True)[0]
            for _ in range(draws)
        ]
    )


def assert_mean_is(expected: Tensor, drawn: Tensor, standard_errors: float = 5.0) -> None:
    error = drawn.std(dim=0) / len(drawn) ** 0.5
    assert ((drawn.mean(dim=0) - expected).abs() <= standard_errors * error).all()
    assert (error <= 0.1 * expected).all(), "too few draws to say anything"


def a_linear_model(outputs: int, *batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    inputs = torch.randn(*batch, 4, generator=generator)
    return inputs, torch.randn(4, outputs, generator=generator).requires_grad_()


def exact_softmax_diagonal(inputs: Tensor, weight: Tensor) -> Tensor:
    """diag of the Gauss–Newton matrix of softmax regression: mean over terms of x_d²·p_c·(1 − p_c)."""
    rows = inputs.flatten(0, -2)
    p = torch.softmax(rows @ weight.detach(), dim=-1)
    return torch.einsum("nd,nc->dc", rows.square(), p * (1 - p)) / len(rows)


def test_it_is_the_exact_gauss_newton_diagonal_of_a_softmax_regression_in_expectation() -> None:
    inputs, weight = a_linear_model(3, 16)
    assert_mean_is(exact_softmax_diagonal(inputs, weight), estimates(inputs, weight, "categorical"))


def test_a_language_models_tokens_are_its_loss_terms() -> None:
    inputs, weight = a_linear_model(3, 4, 6)  # (B, T, features): 24 terms, not 4
    assert_mean_is(exact_softmax_diagonal(inputs, weight), estimates(inputs, weight, "categorical"))


def test_padding_is_no_loss_term_so_it_is_exact_for_the_tokens_that_are_left() -> None:
    inputs, weight = a_linear_model(3, 4, 6)
    targets = torch.zeros(4, 6)
    targets[:, 4:] = targets[3, :] = PADDING  # 12 of 24 tokens are left
    expected = exact_softmax_diagonal(inputs[targets != PADDING], weight)
    assert_mean_is(expected, estimates(inputs, weight, "categorical", targets=targets))


def test_it_is_exact_in_expectation_for_a_logistic_regression() -> None:
    inputs, weight = a_linear_model(1, 16)
    p = torch.sigmoid(inputs @ weight.detach())
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


def test_a_parameter_the_outputs_do_not_depend_on_has_no_curvature() -> None:
    inputs, weight = a_linear_model(3, 16)
    unused = torch.ones(2, requires_grad=True)
    [_, estimate] = gauss_newton_bartlett(
        inputs @ weight,
        torch.zeros(16),
        [weight, unused],
        LIKELIHOODS["categorical"],
        torch.Generator().manual_seed(0),
        retain_graph=False,
    )
    assert estimate.tolist() == [0.0, 0.0]


def test_outputs_that_are_not_numbers_are_refused() -> None:
    inputs, weight = a_linear_model(3, 16)
    with pytest.raises(NotFinite, match="NaN or infinite"):
        gauss_newton_bartlett(
            inputs @ weight * float("nan"),
            torch.zeros(16),
            [weight],
            LIKELIHOODS["categorical"],
            torch.Generator().manual_seed(0),
            retain_graph=False,
        )


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
