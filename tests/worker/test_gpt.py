# SPDX-License-Identifier: Apache-2.0
"""GPT-2's architecture: what it computes, how it begins, and what it can be put through."""

import math

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from protocol.errors import ShapeMismatch
from worker.curvature import hessian_vector_product
from worker.model import ExchangedParameters
from worker.tasks.gpt import DEVIATION, Gpt, causal_attention, plain_causal_attention

VOCABULARY, CONTEXT = 50, 16


def a_gpt(*, blocks: int = 2, width: int = 32) -> Gpt:
    torch.manual_seed(0)
    return Gpt(VOCABULARY, context=CONTEXT, width=width, heads=4, blocks=blocks)


def some_tokens(batch: int = 2, length: int = CONTEXT) -> Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(0))


# --- what it computes ------------------------------------------------------------------------------


def test_no_output_depends_on_a_token_that_comes_after_it() -> None:
    model, text = a_gpt(), some_tokens(batch=1)
    changed = text.clone()
    changed[0, 10] = (text[0, 10] + 1) % VOCABULARY
    with torch.no_grad():
        first, other = model(text), model(changed)
    torch.testing.assert_close(first[0, :10], other[0, :10])
    assert not torch.allclose(first[0, 10:], other[0, 10:])


def test_a_shorter_text_than_the_context_gives_what_it_gives_within_a_longer_one() -> None:
    model, text = a_gpt(), some_tokens()
    with torch.no_grad():
        torch.testing.assert_close(model(text[:, :10]), model(text)[:, :10], rtol=1e-4, atol=1e-6)


def test_a_model_of_no_blocks_compares_embeddings_with_embeddings() -> None:
    """Without blocks a token's logits are E·LayerNorm(E[token] + P[place])."""
    model, text = a_gpt(blocks=0), some_tokens()
    tokens, positions = model.tokens.weight, model.positions.weight
    embedded = tokens[text] + positions
    normal = (embedded - embedded.mean(-1, keepdim=True)) / (
        embedded.var(-1, keepdim=True, correction=0) + 1e-5
    ).sqrt()
    torch.testing.assert_close(model(text), normal @ tokens.T, rtol=1e-4, atol=1e-5)


def test_the_embedding_is_exchanged_once_and_stands_in_both_its_places() -> None:
    model, text = a_gpt(blocks=0), some_tokens()
    exchanged = ExchangedParameters.of(model)
    assert exchanged.names == ("tokens.weight", "positions.weight", "norm.weight", "norm.bias")
    doubled = dict(zip(exchanged.names, exchanged.tensors, strict=True)) | {
        "tokens.weight": 2 * model.tokens.weight
    }
    with torch.no_grad():
        by_call = functional_call(model, doubled, (text,))
        exchanged.load({name: tensor.detach().numpy() for name, tensor in doubled.items()})
        torch.testing.assert_close(model(text), by_call)


def test_a_model_of_other_tokens_is_refused_the_parameters() -> None:
    sizes = {"context": CONTEXT, "width": 32, "heads": 4, "blocks": 1}
    ours, theirs = (ExchangedParameters.of(Gpt(VOCABULARY, **sizes, embedding=name)) for name in ("a", "b"))
    with pytest.raises(
        ShapeMismatch, match=r"expected 16 tensors \(a\.weight, .* got 16 tensors \(b\.weight"
    ):
        ours.load(theirs.arrays_of("params", theirs.flat))


def test_a_block_takes_and_gives_one_tensor_of_one_shape() -> None:
    model, x = a_gpt(), torch.randn(2, CONTEXT, 32)
    for block in model.blocks:
        assert block(x).shape == x.shape


# --- attention -------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 33])
def test_attention_in_plain_operations_is_pytorchs_and_so_are_its_gradients(length: int) -> None:
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(2, 3, length, 8, generator=generator, requires_grad=True) for _ in range(3)]
    plain = plain_causal_attention(*given)
    fused = scaled_dot_product_attention(*given, is_causal=True)
    torch.testing.assert_close(plain, fused)
    weights = torch.randn(plain.shape, generator=generator)
    gradients = [torch.autograd.grad((each * weights).sum(), given) for each in (plain, fused)]
    torch.testing.assert_close(*gradients)


if torch.cuda.is_available():

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
    def test_attention_on_cuda_is_that_of_plain_operations(dtype: torch.dtype, tolerance: float) -> None:
        generator = torch.Generator("cuda").manual_seed(0)
        given = [
            torch.randn(2, 4, 128, 64, device="cuda", dtype=dtype, generator=generator, requires_grad=True)
            for _ in range(3)
        ]
        fused, plain = causal_attention(*given), plain_causal_attention(*given)
        torch.testing.assert_close(fused, plain, rtol=tolerance, atol=tolerance)
        gradients = [torch.autograd.grad(each.float().square().sum(), given) for each in (fused, plain)]
        torch.testing.assert_close(*gradients, rtol=tolerance, atol=10 * tolerance)


def test_on_a_cpu_a_hessian_vector_product_goes_through_the_model() -> None:
    """⟨u, H·v⟩ = ⟨v, H·u⟩, in float64."""
    model, text = a_gpt().double(), some_tokens()
    parameters = tuple(model.parameters())
    u, v = ([torch.randn_like(each) for each in parameters] for _ in range(2))
    products = []
    for vector in (u, v):
        loss = cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        products.append(hessian_vector_product(gradients, parameters, vector))
    uhv, vhu = (
        sum(float((a * b).sum()) for a, b in zip(*pair, strict=True))
        for pair in ((v, products[0]), (u, products[1]))
    )
    assert uhv == pytest.approx(vhu, rel=1e-8) and uhv != 0


# --- how it begins ---------------------------------------------------------------------------------


def test_what_adds_to_the_residual_path_begins_smaller_the_more_blocks_there_are() -> None:
    model = a_gpt(blocks=8, width=64)
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        if "norm" in name:
            assert (values == float(name.endswith("weight"))).all()
        elif name.endswith("bias"):
            assert (values == 0).all()
        else:
            expected = DEVIATION / math.sqrt(16) if name.endswith(".out.weight") else DEVIATION
            assert values.std().item() == pytest.approx(expected, rel=0.1), name
            assert abs(values.mean().item()) < 0.1 * DEVIATION


def test_at_first_it_knows_next_to_nothing() -> None:
    model, text = a_gpt(), some_tokens(batch=16)
    targets = torch.randint(VOCABULARY, text.shape, generator=torch.Generator().manual_seed(1))
    loss = cross_entropy(model(text).flatten(0, 1), targets.flatten())
    assert loss.item() == pytest.approx(math.log(VOCABULARY), rel=0.02)


# --- what it can be put through --------------------------------------------------------------------


def test_it_compiles_as_one_graph() -> None:
    model, text = a_gpt(), some_tokens()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(text), model(text))


def test_in_bfloat16_it_gives_about_the_same_and_gradients_in_float32() -> None:
    model, text = a_gpt(), some_tokens()
    exact = model(text)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(text)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.02)
    cross_entropy(rounded.float().flatten(0, 1), text.flatten()).backward()
    assert all(
        parameter.grad is not None and parameter.grad.dtype == torch.float32
        for parameter in model.parameters()
    )
