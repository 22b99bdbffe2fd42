"""A small transformer encoder that classifies texts (Vaswani et al. 2017, with norms first)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import InputError

PADDING = 0


class EncoderLayer(nn.Module):
    """Self-attention and a two-layer network, each added to what came in. [N, T, W] -> the same."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        # Pruning changes their number and their size, not the scale that they were trained with.
        self.head_size = width // heads
        self.scale = self.head_size**-0.5
        self.norm1 = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        x = x + self.dropout(self._attend(self.norm1(x), visible))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))

    def _attend(self, x: Tensor, visible: Tensor) -> Tensor:
        n, length, _ = x.shape
        parts = self.query_key_value(x).reshape(n, length, 3, self.heads, self.head_size)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each [N, heads, T, head_size]
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, scale=self.scale
        )
        return self.project(mixed.transpose(1, 2).reshape(n, length, self.heads * self.head_size))


class TransformerClassifier(nn.Module):
    """See `transformer`. tokens int64 [N, T] -> [N, classes] logits."""

    input_dtype = "int64"  # what `edgeml compress` feeds; a signature does not say it

    def __init__(
        self,
        vocabulary: int,
        classes: int,
        width: int,
        heads: int,
        layers: int,
        max_length: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=PADDING)
        self.position = nn.Parameter(torch.randn(max_length, width) * 0.02)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(EncoderLayer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.dense = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        there = tokens != PADDING  # [N, T]
        x = self.dropout(self.embedding(tokens) + self.position[: tokens.shape[1]])
        visible = there[:, None, None, :]
        for layer in self.layers:
            x = layer(x, visible)
        weight = there[:, :, None].to(x.dtype)
        pooled = (self.norm(x) * weight).sum(1) / weight.sum(1).clamp(min=1)
        return self.dense(pooled)


def transformer(
    *,
    vocabulary: int = 10_000,
    classes: int = 5,
    width: int = 64,
    heads: int = 4,
    layers: int = 2,
    max_length: int = 256,
    dropout: float = 0.1,
) -> TransformerClassifier:
    """A small encoder; the mean over the tokens is classified.

    Args:
        vocabulary: number of token ids; 0 is padding.
        max_length: tokens; longer texts must be cut before.

    Raises:
        InputError: `width` is no multiple of `heads`, or a size is below 1.
    """
    if min(vocabulary, classes, width, heads, layers, max_length) < 1 or width % heads:
        raise InputError(f"width {width} must be a multiple of heads {heads}, all sizes from 1 on")
    return TransformerClassifier(vocabulary, classes, width, heads, layers, max_length, dropout)
