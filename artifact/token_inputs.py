"""A text as the arrays that a text network takes, by the names that BERT and its kin give them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def token_inputs(tokenizer: Any, text: str) -> dict[str, np.ndarray]:
    """Ids, mask (0 is padding) and segment numbers of a text, each int64 [length], without a batch axis.

    Args:
        tokenizer: a ``tokenizers.Tokenizer`` that cuts and pads to its length.
    """
    found = tokenizer.encode(text)
    values = (found.ids, found.attention_mask, found.type_ids)
    return {name: np.asarray(v, np.int64) for name, v in zip(INPUTS, values, strict=True)}


def for_network(
    arrays: dict[str, np.ndarray], names: Iterable[str]
) -> dict[str, np.ndarray] | None:
    """Of `arrays` those that a network with inputs `names` takes; its one input, if it has another
    name, takes the first. None: they do not fit.

    >>> for_network({"input_ids": 1, "attention_mask": 2}, ["attention_mask", "input_ids"])
    {'attention_mask': 2, 'input_ids': 1}
    >>> for_network({"input_ids": 1, "attention_mask": 2}, ["tokens"])
    {'tokens': 1}
    """
    names = list(names)
    if set(names) <= set(arrays):
        return {name: arrays[name] for name in names}
    return {names[0]: next(iter(arrays.values()))} if len(names) == 1 else None
