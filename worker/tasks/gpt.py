# SPDX-License-Identifier: Apache-2.0
"""GPT-2's architecture: a transformer that predicts the next token.

x ← token embedding + position embedding
x ← x + Attention(LayerNorm(x)),  x ← x + MLP(LayerNorm(x))         in each block
logits = W·LayerNorm(x), with W the token embedding itself
Attention: softmax(QKᵀ/√d + causal mask)·V in each head of d dimensions;  MLP: width → 4·width → width

First values: weights N(0, 0.02²), those that add to the residual path scaled by 1/√(2·blocks), biases 0,
LayerNorms 1 and 0.

Source: Radford et al. 2019 (Language Models are Unsupervised Multitask Learners), 2.3; 0.02 is from Radford
et al. 2018 (Improving Language Understanding by Generative Pre-Training), 4.1; logits by the embedding: Press
and Wolf 2017 (arXiv 1608.05859). GELU is the tanh approximation, as theirs is. Differs: no dropout, which
training of few passes over a text has no need of; positions begin with 0.02 too.
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor, nn

DEVIATION = 0.02


class Gpt(nn.Module):
    """Logits (B, T, vocabulary) of the token after each of (B, T) tokens, T at most `context`.

    The embedding is one parameter in both its places. `blocks` is a sequence of equal modules that take and
    give (B, T, width).
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        context: int,
        width: int,
        heads: int,
        blocks: int,
        embedding: str = "tokens",
    ) -> None:
        """Make one, with its first values.

        Args:
            embedding: what the token embedding is called. Models whose tokens mean different things, and
                which therefore call it differently, are refused each other's parameters.
        """
        super().__init__()
        self._embedding = embedding
        self.add_module(embedding, nn.Embedding(vocabulary, width))
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(GptBlock(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        for part in self.modules():
            if isinstance(part, nn.Linear | nn.Embedding):
                nn.init.normal_(part.weight, std=DEVIATION)
            if isinstance(part, nn.Linear):
                nn.init.zeros_(part.bias)
        for name, weight in self.blocks.named_parameters():
            if name.endswith((".attention.out.weight", ".mlp.out.weight")):
                nn.init.normal_(weight, std=DEVIATION / math.sqrt(2 * blocks))

    def forward(self, tokens: Tensor) -> Tensor:
        embedding: nn.Embedding = getattr(self, self._embedding)
        embedded = embedding(tokens) + self.positions.weight[: tokens.shape[-1]]
        return F.linear(self.norm(self.blocks(embedded)), embedding.weight)


class GptBlock(nn.Module):
    """Attention and MLP, each added to what it is given: (B, T, width) to (B, T, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = _CausalAttention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = _Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        moved: Tensor = x + self.mlp(self.mlp_norm(x))
        return moved


class _CausalAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.query_key_value(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        query, key, value = (each.transpose(-2, -3) for each in (query, key, value))  # (B, heads, T, d)
        attended: Tensor = self.out(causal_attention(query, key, value).transpose(-2, -3).flatten(-2))
        return attended


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, 4 * width)
        self.out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        moved: Tensor = self.out(F.gelu(self.hidden(x), approximate="tanh"))
        return moved


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Let each place attend to itself and to those before it; all shapes are (…, heads, T, d).

    On CUDA by PyTorch's fused kernels, which never hold the (T, T) weights, but whose gradients have none:
    where these are wanted, `worker.machine.plain_attention` puts plain operations in their place.
    """
    if query.is_cuda:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    # the CPU's fused kernel knows neither vmap (it goes through the models one by one, with a warning) nor a
    # second derivative, and saves little time in texts as short as a CPU is given
    return plain_causal_attention(query, key, value)


def plain_causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same in plain operations, as often differentiable as one likes."""
    length, dimensions = query.shape[-2:]
    # [t, s]: does s come after t?
    future = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(diagonal=1)
    scores = query @ key.transpose(-1, -2) / math.sqrt(dimensions)
    return scores.masked_fill(future, -math.inf).softmax(dim=-1) @ value
