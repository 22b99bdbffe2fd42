"""The proof that a group may be cut: the pruned network computes what the masked one does.

A group is all that depends on some channels, so removing them must give what zeroing them where they
are read gives. A graph that missed a dependency, or a reshape that means something else afterwards,
shows here and not as lost accuracy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ModelError, one_line
from ..train.prune_history import Entry, replay
from .prune_graph import FoundGroup, Slice, forward, tensors_of

# float32 sums in another order; a wrong channel differs by far more.
TOLERANCE = 2e-3
# What these compute for one channel depends on all: masking is not removing, only shapes are checked.
ACROSS_CHANNELS = (nn.LayerNorm, nn.GroupNorm)


def failure(
    model: nn.Module, inputs: Any, groups: Sequence[FoundGroup], entries: Sequence[Entry]
) -> str | None:
    """Why cutting `groups` as `entries` say is wrong; None where it is right.

    Args:
        model: in eval mode; stays as it is.
        entries: one history entry a group, ``kept`` of each.
    """
    try:
        pruned = replay(copy.deepcopy(model), list(entries))
    except ModelError as e:  # a layer's own rule, such as groups of equal size
        return f"a layer cannot be cut so: {one_line(e.__cause__ or e)}"
    try:
        with torch.no_grad():
            got = tensors_of(forward(pruned, inputs))
            with _masked(model, groups, [np.array(e["kept"]) for e in entries]):
                expected = tensors_of(forward(model, inputs))
    except Exception as e:  # whatever a user's forward raises when its widths change
        return f"the network does not run any more: {one_line(e)}"
    if [t.shape for t in got] != [t.shape for t in expected]:
        return "the outputs change their shape"
    if any(mixes_channels(model, group) for group in groups):
        return None if all(t.isfinite().all() for t in got) else "the outputs are not finite"
    for a, b in zip(got, expected, strict=True):
        scale = float(b.abs().max()) if b.numel() else 0.0
        if not a.isfinite().all() or (b.numel() and float((a - b).abs().max()) > TOLERANCE * scale):
            return "what is left does not compute the same, so more depends on it than can be seen"
    return None


def mixes_channels(model: nn.Module, group: FoundGroup) -> bool:
    """Whether a layer of the group computes each channel from all."""
    names = [piece.layer for piece in group.slices if not piece.axis.startswith("dim")]
    layers = map(model.get_submodule, names)
    return any(isinstance(m, ACROSS_CHANNELS) or "RMSNorm" in type(m).__name__ for m in layers)


@contextmanager
def _masked(
    model: nn.Module, groups: Sequence[FoundGroup], kept: Sequence[np.ndarray]
) -> Iterator[None]:
    """Zero what is removed wherever it is read (a group that no layer reads: where it is made)."""
    hooks, weights = [], []
    try:
        for group, units in zip(groups, kept, strict=True):
            for piece in group.slices:
                gone = np.setdiff1d(np.arange(len(piece.unit_of)), piece.positions(units))
                if piece.axis == "in":
                    layer = model.get_submodule(piece.layer)
                    hooks.append(layer.register_forward_pre_hook(_zeroing(layer, gone)))
                elif group.attention and piece.axis == "out":  # queries and keys read each other
                    layer = model.get_submodule(piece.layer)
                    hooks.append(layer.register_forward_hook(_silencing(layer, gone)))
                elif piece.axis == "hidden":
                    weights += _zero_recurrence(model.get_submodule(piece.layer), gone)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for weight, values in weights:
            weight.data.copy_(values)


def readers(model: nn.Module, group: FoundGroup) -> list[Slice]:
    """The layers that read a group's channels and make others of them."""
    return [piece for piece in group.slices if piece.axis == "in"]


def channel_dim(layer: nn.Module, x: Tensor) -> int:
    """Which dimension of a layer's input holds its channels."""
    if isinstance(layer, (nn.Linear, nn.RNNBase, nn.LayerNorm)) or hasattr(layer, "nx"):
        return x.dim() - 1
    return 1


def _silencing(layer: nn.Module, gone: np.ndarray) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple, y: Tensor) -> Tensor:
        index = torch.as_tensor(gone, dtype=torch.long, device=y.device)
        return y.index_fill(channel_dim(layer, y), index, 0.0)

    return hook


def _zero_recurrence(layer: nn.RNNBase, gone: np.ndarray) -> list[tuple[Tensor, Tensor]]:
    """An LSTM or GRU reads its own hidden units. Returns the weights with their values before."""
    changed = []
    below = np.concatenate([gone + d * layer.hidden_size for d in range(1 + layer.bidirectional)])
    for name, weight in layer.named_parameters():
        index = gone if name.startswith("weight_hh") else below
        if name.startswith("weight_hh") or (name.startswith("weight_ih") and "_l0" not in name):
            changed.append((weight, weight.detach().clone()))
            weight.data[:, torch.as_tensor(index, dtype=torch.long)] = 0.0
    return changed


def _zeroing(layer: nn.Module, gone: np.ndarray) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple) -> tuple:
        x = args[0]
        index = torch.as_tensor(gone, dtype=torch.long, device=x.device)
        return (x.index_fill(channel_dim(layer, x), index, 0.0), *args[1:])

    return hook
