"""A recurrent text classifier: embedding, LSTM or GRU, dense; padding changes nothing.

Lengths are counted from the tokens (padding is id 0) inside the graph, so the exported network has
one input and treats batches of mixed lengths as the module does. Packed sequences do not export;
the same is had by reading the state at each text's own last token, and by giving the backward
direction the text reversed within its own length.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ...errors import InputError

PADDING = 0


class RecurrentClassifier(nn.Module):
    """See `rnn`. tokens int64 [N, T] -> [N, classes] logits."""

    input_dtype = "int64"  # what `edgeml compress` feeds; a signature does not say it

    def __init__(
        self,
        vocabulary: int,
        classes: int,
        embedding: int,
        hidden: int,
        cell: str,
        bidirectional: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        kind = nn.LSTM if cell == "lstm" else nn.GRU
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=PADDING)
        self.forward_rnn = kind(embedding, hidden, batch_first=True)
        self.backward_rnn = kind(embedding, hidden, batch_first=True) if bidirectional else None
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(hidden * (2 if bidirectional else 1), classes)

    def forward(self, tokens: Tensor) -> Tensor:
        last = (tokens != PADDING).sum(1, keepdim=True).clamp(min=1) - 1  # [N, 1]
        states = [_state_at(self.forward_rnn(self.embedding(tokens))[0], last)]
        if self.backward_rnn is not None:
            places = torch.arange(tokens.shape[1], device=tokens.device)[None]  # [1, T]
            # Beyond the last token the reversed text holds that text's first one: never read.
            backwards = torch.gather(tokens, 1, (last - places).clamp(min=0))
            states.append(_state_at(self.backward_rnn(self.embedding(backwards))[0], last))
        return self.dense(self.dropout(torch.cat(states, 1)))


def _state_at(states: Tensor, place: Tensor) -> Tensor:
    """[N, T, hidden], [N, 1] -> [N, hidden]."""
    index = place[:, :, None].expand(-1, 1, states.shape[2])
    return torch.gather(states, 1, index)[:, 0]


def rnn(
    *,
    vocabulary: int = 10_000,
    classes: int = 5,
    embedding: int = 64,
    hidden: int = 64,
    cell: Literal["lstm", "gru"] = "lstm",
    bidirectional: bool = True,
    dropout: float = 0.2,
) -> RecurrentClassifier:
    """A recurrent text classifier.

    Args:
        vocabulary: number of token ids; 0 is padding.

    Raises:
        InputError: an unknown cell, or a size below 1.
    """
    if cell not in ("lstm", "gru"):
        raise InputError(f"unknown cell {cell!r}; known: gru, lstm")
    if min(vocabulary, classes, embedding, hidden) < 1:
        raise InputError("vocabulary, classes, embedding and hidden are numbers from 1 on")
    return RecurrentClassifier(vocabulary, classes, embedding, hidden, cell, bidirectional, dropout)
