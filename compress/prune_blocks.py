"""Blocks that can be left out: modules of a Sequential or ModuleList that keep their input's shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..train.prune_history import RemovedBlock
from .prune_graph import forward, tensors_of


@dataclass(frozen=True)
class Block:
    """A module that can be left out.

    Attributes:
        outputs: how many outputs it returns as a tuple, those after the first None; 0: a tensor.
    """

    name: str
    outputs: int = 0


def find_blocks(model: nn.Module, inputs: Any) -> list[Block]:
    """Blocks in the network's order; of nested ones the outer, unless it only holds several others.

    Args:
        model: in eval mode.
    """
    names = {module: name for name, module in model.named_modules()}
    candidates = {
        names[child]: child
        for parent in model.modules()
        if isinstance(parent, (nn.Sequential, nn.ModuleList))
        for child in parent.children()
        if any(p.dim() > 1 for p in child.parameters()) and not isinstance(child, nn.Embedding)
    }
    same = _keep_their_shape(model, inputs, candidates)
    blocks = []
    for name, outputs in same.items():
        inside = [other for other in same if other.startswith(f"{name}.")]
        outside = [other for other in same if name.startswith(f"{other}.")]
        holder = isinstance(candidates[name], nn.Sequential) and _holds_several(name, inside)
        hidden = any(
            not (isinstance(candidates[o], nn.Sequential) and _holds_several(o, _below(o, same)))
            for o in outside
        )
        if not holder and not hidden and _runs_without(model, inputs, name, outputs):
            blocks.append(Block(name, outputs))
    return blocks


def _below(name: str, names: Any) -> list[str]:
    return [other for other in names if other.startswith(f"{name}.")]


def _holds_several(name: str, inside: list[str]) -> bool:
    return sum(other.count(".") == name.count(".") + 1 for other in inside) > 1


def _keep_their_shape(
    model: nn.Module, inputs: Any, candidates: dict[str, nn.Module]
) -> dict[str, int]:
    """Those of the candidates whose (first) output has their first input's shape, with the number of
    outputs; one that is called twice, or returns more than that, is none."""
    found: dict[str, int] = {}
    calls: dict[str, int] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            many = isinstance(output, tuple)
            first = output[0] if many and output else output
            alone = not many or all(other is None for other in output[1:])
            tensors = isinstance(first, torch.Tensor) and args and isinstance(args[0], torch.Tensor)
            if tensors and alone and first.shape == args[0].shape and first.dtype == args[0].dtype:
                found[name] = len(output) if many else 0

        return hook

    hooks = [module.register_forward_hook(watch(name)) for name, module in candidates.items()]
    try:
        with torch.no_grad():
            forward(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    order = {name: index for index, (name, _) in enumerate(model.named_modules())}
    return {n: found[n] for n in sorted(found, key=order.__getitem__) if calls[n] == 1}


def _runs_without(model: nn.Module, inputs: Any, name: str, outputs: int) -> bool:
    with torch.no_grad():
        before = [t.shape for t in tensors_of(forward(model, inputs))]
        try:
            with without_block(model, name, outputs):
                after = tensors_of(forward(model, inputs))
        except Exception:  # whatever a user's forward raises when a part is gone
            return False
    return [t.shape for t in after] == before and all(bool(t.isfinite().all()) for t in after)


@contextmanager
def without_block(model: nn.Module, name: str, outputs: int = 0) -> Iterator[None]:
    """`model` without a block, for a while."""
    parent, _, child = name.rpartition(".")
    holder, block = model.get_submodule(parent), model.get_submodule(name)
    setattr(holder, child, RemovedBlock(outputs))
    try:
        yield
    finally:
        setattr(holder, child, block)
