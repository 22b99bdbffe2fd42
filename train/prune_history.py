"""What was pruned from a network, as ordered JSON, and how it is done again on a fresh one.

A pruned network is its factory, this history and a safetensors file: no pickle. Each entry says all
that it changes, so replaying needs no dependency graph, no example inputs and no pruning library:

``{"op": "channels", "module": "layer1.0.conv1", "kept": [0, 2, 3],
"layers": [["layer1.0.conv1", "out"], ["layer1.0.bn1", "out"], ["layer1.0.conv2", "in"]]}``

``kept`` counts units of the group (channels, heads, hidden units); a layer whose own positions
differ, such as the dense layer behind a flatten, carries its own list as a third element. ``set``
holds attributes that a module's ``forward`` reads (number of heads). A removed block has ``kept``
[] and no layers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..artifact.atomic_file import write_json
from ..errors import ModelError, one_line

OPS = ("channels", "heads", "hidden", "rnn_hidden", "block")

Entry = dict[str, Any]


def write_history(path: Path, history: list[Entry]) -> None:
    """Write a history, as `read_history` reads it."""
    write_json(path, history)


def read_history(path: Path) -> list[Entry]:
    """The history in a JSON file.

    Raises:
        ModelError: the file is missing or no such list.
    """
    try:
        history = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ModelError(f"{path} is no pruning history: {one_line(e)}") from e
    if not isinstance(history, list):
        raise ModelError(f"{path} is no pruning history: it must be a list of operations")
    return history


def replay(module: nn.Module, history: list[Entry]) -> nn.Module:
    """Do to `module`, in place, what a history says.

    The weights that are kept stay as they are, so a network replayed with its original weights
    equals the one that was pruned; on a fresh one the weights are loaded afterwards.

    Returns:
        `module` itself.

    Raises:
        ModelError: an entry does not fit the network; the message says which.
    """
    for number, entry in enumerate(history):
        try:
            _replay_entry(module, entry)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as e:
            where = entry.get("module", "?") if isinstance(entry, dict) else entry
            raise ModelError(
                f"pruning history, entry {number} ({where}) does not fit "
                f"{type(module).__name__}: {one_line(e)}; it was made for another network"
            ) from e
    return module


def _replay_entry(module: nn.Module, entry: Entry) -> None:
    if entry["op"] not in OPS:
        raise ValueError(f"unknown operation {entry['op']!r}")
    if entry["op"] == "block":
        remove_block(module, entry["module"], entry.get("outputs", 0))
        return
    for name, axis, *own in entry["layers"]:
        cut(module, name, axis, own[0] if own else entry["kept"])
    for name, values in entry.get("set", {}).items():
        part = module.get_submodule(name)
        for attribute, value in values.items():
            if type(getattr(part, attribute)) is not int or type(value) is not int:
                raise ValueError(f"{name}.{attribute} is no whole number")
            setattr(part, attribute, value)


# ---------------------------------------------------------------- depth


class RemovedBlock(nn.Module):
    """Stands where a block was and hands on its first argument, whatever else the block was called
    with. Names of later blocks, and so of weights, stay as they are.

    Args:
        outputs: how many outputs the block returned as a tuple, those after the first None; 0 where
            it returned the tensor itself.
    """

    def __init__(self, outputs: int = 0) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Any, *others: Any, **named: Any) -> Any:
        return (x, *[None] * (self.outputs - 1)) if self.outputs else x


def remove_block(module: nn.Module, name: str, outputs: int = 0) -> None:
    """Put a `RemovedBlock` in the place of a submodule."""
    module.get_submodule(name)  # raises where there is none
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, RemovedBlock(outputs))


# ---------------------------------------------------------------- width


def cut(module: nn.Module, name: str, axis: str, kept: list[int]) -> None:
    """Keep some positions of one axis of a layer, in place.

    Args:
        name: of the layer within `module`, or of a bare parameter.
        axis: ``out`` or ``in`` (channels, features), ``hidden`` (units of an LSTM or GRU, all its
            layers and directions), ``dim0``, ``dim1`` … of a bare parameter.
        kept: positions that stay, ascending.

    Raises:
        ValueError: positions that do not exist, or a layer that cannot be cut so.
        AttributeError: no such layer.
    """
    parent, _, child = name.rpartition(".")
    if axis.startswith("dim"):
        owner = module.get_submodule(parent)
        _select(owner, child, {int(axis[3:]): kept})
        return
    layer = module.get_submodule(name)
    _check_kept(kept, axis_size(layer, axis))
    if hasattr(layer, "keep_channels"):
        layer.keep_channels(axis, list(kept))
    elif isinstance(layer, nn.modules.conv._ConvNd):
        _cut_conv(layer, axis, kept)
    elif isinstance(layer, nn.Linear):
        if axis == "out":
            _select(layer, "weight", {0: kept})
            _select(layer, "bias", {0: kept})
            layer.out_features = len(kept)
        else:
            _select(layer, "weight", {1: kept})
            layer.in_features = len(kept)
    elif type(layer).__name__ == "Conv1D":  # of transformers: a Linear with its weight transposed
        if axis == "out":
            _select(layer, "weight", {1: kept})
            _select(layer, "bias", {0: kept})
            layer.nf = len(kept)
        else:
            _select(layer, "weight", {0: kept})
            layer.nx = len(kept)
    elif isinstance(layer, nn.RNNBase):
        _cut_rnn(layer, axis, kept)
    elif isinstance(layer, nn.Embedding):
        _select(layer, "weight", {1: kept})
        layer.embedding_dim = len(kept)
    elif isinstance(layer, nn.LayerNorm):
        _select(layer, "weight", {-1: kept})
        _select(layer, "bias", {-1: kept})
        layer.normalized_shape = (*layer.normalized_shape[:-1], len(kept))
    else:  # one number a channel: batch, group and instance norms, PReLU, hand-written norms
        for parameter in ("weight", "bias", "running_mean", "running_var"):
            if isinstance(getattr(layer, parameter, None), torch.Tensor):
                _select(layer, parameter, {0: kept})
        for size in ("num_features", "num_channels", "num_parameters"):
            if hasattr(layer, size):
                setattr(layer, size, len(kept))


def axis_size(layer: nn.Module, axis: str) -> int:
    """How many positions an axis of a layer has now (see `cut`).

    Raises:
        ValueError: such a layer has no such axis.
    """
    sizes = {
        "out": (
            "out_channels",
            "out_features",
            "num_features",
            "num_channels",
            "num_parameters",
            "embedding_dim",
            "nf",
        ),
        "in": ("in_channels", "in_features", "input_size", "nx"),
        "hidden": ("hidden_size",),
    }[axis]
    for name in sizes:
        if isinstance(getattr(layer, name, None), int):
            return getattr(layer, name)
    shape = getattr(layer, "normalized_shape", None)
    if axis == "out" and shape:
        return shape[-1]
    weight = getattr(layer, "weight", None)
    if axis == "out" and weight is not None and weight.dim() == 1:
        return len(weight)
    raise ValueError(f"a {type(layer).__name__} has no {axis} axis that can be pruned")


def _check_kept(kept: list[int], size: int) -> None:
    if not kept:
        raise ValueError("nothing would be left")
    if list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= size:
        raise ValueError(f"the kept positions are not ascending numbers below {size}")


def _cut_conv(layer: Any, axis: str, kept: list[int]) -> None:
    groups = layer.groups
    out_dim, in_dim = (1, 0) if layer.transposed else (0, 1)
    if groups > 1 and groups == layer.in_channels == layer.out_channels:
        _select(layer, "weight", {0: kept})  # depthwise: its channels are its groups
        _select(layer, "bias", {0: kept})
        layer.in_channels = layer.out_channels = layer.groups = len(kept)
        return
    size = layer.out_channels if axis == "out" else layer.in_channels
    dim = out_dim if axis == "out" else in_dim
    # Of a grouped convolution one weight dimension counts within a group only.
    within = groups > 1 and layer.weight.shape[dim] != size
    if groups > 1:
        each = size // groups
        parts = [[i - g * each for i in kept if i // each == g] for g in range(groups)]
        if any(len(part) != len(parts[0]) for part in parts) or (
            within and any(part != parts[0] for part in parts)
        ):
            raise ValueError(f"its {groups} groups would keep different channels")
        if within:
            _select(layer, "weight", {dim: parts[0]})
        else:
            _select(layer, "weight", {dim: kept})
    else:
        _select(layer, "weight", {dim: kept})
    if axis == "out":
        _select(layer, "bias", {0: kept})
        layer.out_channels = len(kept)
    else:
        layer.in_channels = len(kept)


def _cut_rnn(layer: Any, axis: str, kept: list[int]) -> None:
    """torch.nn.LSTM, GRU and RNN: weights are ``[gates × hidden, in]`` and ``[gates × hidden,
    hidden]``; layers above the first read all directions of the one below."""
    directions = ["", "_reverse"] if layer.bidirectional else [""]
    if axis == "in":
        for direction in directions:
            _select(layer, f"weight_ih_l0{direction}", {1: kept})
        layer.input_size = len(kept)
        return
    if layer.proj_size:
        raise ValueError("an LSTM with a projection cannot be pruned")
    hidden, gates = layer.hidden_size, layer.weight_hh_l0.shape[0] // layer.hidden_size
    rows = [gate * hidden + i for gate in range(gates) for i in kept]
    below = [d * hidden + i for d in range(len(directions)) for i in kept]
    for number in range(layer.num_layers):
        for direction in directions:
            name = f"l{number}{direction}"
            _select(layer, f"weight_ih_{name}", {0: rows, **({1: below} if number else {})})
            _select(layer, f"weight_hh_{name}", {0: rows, 1: kept})
            if layer.bias:
                _select(layer, f"bias_ih_{name}", {0: rows})
                _select(layer, f"bias_hh_{name}", {0: rows})
    layer.hidden_size = len(kept)


def _select(owner: Any, name: str, kept: dict[int, list[int]]) -> None:
    """Keep some indices of dimensions of a parameter or buffer; one that is None stays None."""
    old = getattr(owner, name, None)
    if old is None:
        return
    new = old.detach()
    for dim, positions in kept.items():
        index = torch.as_tensor(positions, dtype=torch.long, device=new.device)
        new = new.index_select(dim, index)
    new = new.contiguous().clone()
    if isinstance(old, nn.Parameter):
        setattr(owner, name, nn.Parameter(new, requires_grad=old.requires_grad))
    else:
        setattr(owner, name, new)
