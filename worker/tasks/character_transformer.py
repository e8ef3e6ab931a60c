# SPDX-License-Identifier: Apache-2.0
"""A small transformer that predicts the next character.

x ← x + Attention(LayerNorm(x)),  x ← x + MLP(LayerNorm(x)) in each block; logits of LayerNorm(x)
Attention: softmax(QKᵀ/√d + causal mask)·V in each head of d dimensions

Source: Vaswani et al. 2017 (arXiv 1706.03762). Differs: decoder only, learned positions, layers are
normalised before and not after (Xiong et al. 2020, arXiv 2002.04745), GELU, no dropout. Attention is
written in plain operations, which many models can go through at once (`torch.func.vmap`).
"""

import math

import torch
from torch import Tensor, nn

EMBEDDING_DEVIATION = 0.02
"""Of the first embeddings; PyTorch's own, 1, would drown what the blocks add."""


class CharacterTransformer(nn.Module):
    """Logits (B, T, vocabulary) of the character after each of (B, T) characters, T at most `context`."""

    def __init__(
        self, vocabulary: int, *, context: int = 64, width: int = 64, heads: int = 4, blocks: int = 2
    ) -> None:
        super().__init__()
        self.characters = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        for embedding in (self.characters, self.positions):
            nn.init.normal_(embedding.weight, std=EMBEDDING_DEVIATION)
        self.blocks = nn.Sequential(*(_Block(context, width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.logits = nn.Linear(width, vocabulary)

    def forward(self, characters: Tensor) -> Tensor:
        embedded = self.characters(characters) + self.positions.weight[: characters.shape[-1]]
        logits: Tensor = self.logits(self.norm(self.blocks(embedded)))
        return logits


class _Block(nn.Module):
    def __init__(self, context: int, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = _CausalAttention(context, width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        moved: Tensor = x + self.mlp(self.mlp_norm(x))
        return moved


class _CausalAttention(nn.Module):
    future: Tensor

    def __init__(self, context: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        # [t, s]: does s come after t? A constant: it is not exchanged
        future = torch.ones(context, context, dtype=torch.bool).triu(diagonal=1)
        self.register_buffer("future", future, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        length, width = x.shape[-2:]
        query, key, value = self.query_key_value(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        query, key, value = (each.transpose(-2, -3) for each in (query, key, value))  # (B, heads, T, d)
        scores = query @ key.transpose(-1, -2) / math.sqrt(width // self.heads)
        weights = scores.masked_fill(self.future[:length, :length], -math.inf).softmax(dim=-1)
        attended: Tensor = self.out((weights @ value).transpose(-2, -3).reshape(*x.shape))
        return attended
