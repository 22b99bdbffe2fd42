"""Whether a forward asks a tensor which way to go."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .prune_graph import try_forward

_ASKING = (torch.Tensor.__bool__,)


class _Watch(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _ASKING:
            frame = sys._getframe(1)
            self.places.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
        return func(*args, **(kwargs or {}))


def branch(model: nn.Module, inputs: Any) -> str | None:
    """``file:line`` where `model` first turns a tensor into a truth; None where it does not.

    Libraries that look at their attention mask this way (transformers) are passed over: what they
    decide does not change the network's shape.

    Raises:
        InputError: the model does not run on these inputs.
    """
    watch = _Watch()
    with watch:
        try_forward(model, inputs)
    own = [p for p in watch.places if "site-packages" not in p]
    return own[0].rpartition("/")[2] if own else None
