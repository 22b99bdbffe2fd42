"""Which channels hang together: groups read from Torch-Pruning's dependency graph.

The graph (Fang et al. 2023, DepGraph, arXiv:2301.12900) is traced on a copy. Layers that it fails on
(LSTM, GRU, option-A shortcuts, transformers' Conv1D) are replaced in that copy by layers of the same
widths that it knows; where it cannot be built for the whole network, it is built for its parts, and
what touches a part's inputs or outputs stays as it is.
"""

from __future__ import annotations

import copy
import ctypes
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError, MissingPart, one_line
from ..train.prune_history import axis_size

T = TypeVar("T")
# Autograd nodes that mix all of a head's channels: a group that holds one is attention's.
ATTENTION_NODES = ("softmax", "scaleddotproduct")


class TimeLimit(Exception):
    """The graph took too long (Torch-Pruning 1.6.1 never ends on grouped-query attention)."""


@dataclass(frozen=True)
class Slice:
    """One axis of one layer that a group cuts.

    Attributes:
        layer: its name, or that of a bare parameter.
        axis: as `train.prune_history.cut` takes it.
        unit_of: int64 [axis size]: the group's unit that each position belongs to; -1 where it
            belongs to none, and stays.
    """

    layer: str
    axis: str
    unit_of: np.ndarray

    def positions(self, kept: np.ndarray) -> np.ndarray:
        """Positions that stay when the units `kept` do."""
        return np.flatnonzero((self.unit_of < 0) | np.isin(self.unit_of, kept))


@dataclass
class FoundGroup:
    """Units that go together, as the graph tells it.

    Attributes:
        size: units.
        attention: whether an attention's softmax lies between its layers.
    """

    root: str
    size: int
    slices: list[Slice]
    attention: bool = False


@dataclass
class Found:
    """Groups, and what could not be looked at."""

    groups: list[FoundGroup] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def try_forward(model: nn.Module, inputs: Any) -> Any:
    """`forward` without gradients.

    Raises:
        InputError: the model does not run on these inputs.
    """
    try:
        with torch.no_grad():
            return forward(model, inputs)
    except Exception as e:  # whatever a user's forward raises
        raise InputError(
            f"{type(model).__name__} does not run on the example inputs: {one_line(e)}"
        ) from e


def forward(model: nn.Module, inputs: Any) -> Any:
    """Run `model` on one tensor, a tuple of tensors, or a dict of them by name."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def tensors_of(outputs: Any) -> list[Tensor]:
    """The floating tensors of whatever a module returned."""
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() else []
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    if isinstance(outputs, (tuple, list)):
        return [tensor for part in outputs for tensor in tensors_of(part)]
    return []


def find_in_graph(model: nn.Module, inputs: Any, limit_s: float) -> Found:
    """All groups of a network.

    Args:
        inputs: see `forward`.
        limit_s: how long one graph may take.

    Raises:
        MissingPart: Torch-Pruning does not import.
    """
    try:
        import torch_pruning  # noqa: F401
    except ImportError as e:
        raise MissingPart(
            f"pruning needs torch-pruning, which does not import here ({one_line(e)}); pip install "
            "'edgeml-toolchain[prune]'"
        ) from e
    traced, real_name = _traceable(model)
    calls = _record_calls(traced, inputs)
    found = Found()
    gave_up: set[type] = set()
    waiting: list[tuple[str, nn.Module]] = [("", traced)]
    while waiting:
        name, part = waiting.pop(0)
        if sum(map(_has_weight, part.modules())) < 2:
            continue
        prefix = f"{name}." if name else ""
        # What failed once fails again, unless it only holds others.
        if name in calls and (type(part) not in gave_up or isinstance(part, nn.Sequential)):
            try:
                groups = within(limit_s, partial(_read_graph, part, *calls[name]))
            except Exception as e:  # Torch-Pruning raises anything on what it does not know
                limit = isinstance(e, TimeLimit)
                why = f"not within {limit_s:.3g} s" if limit else one_line(e)
                where = f"{name} ({type(part).__name__})" if name else type(part).__name__
                if type(part) not in gave_up:
                    found.notes.append(f"no dependency graph of {where}: {why}; its parts alone")
                gave_up.add(type(part))
                limit_s = limit_s / 2 if limit else limit_s
            else:
                found.groups += [_renamed(group, prefix, real_name) for group in groups.groups]
                found.notes += [f"{prefix}{note}" for note in groups.notes]
                continue
        waiting += [(prefix + child, inner) for child, inner in part.named_children()]
    return found


def _has_weight(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))


def within(seconds: float, function: Callable[[], T]) -> T:
    """What `function` returns, if it does so in time; otherwise it is stopped.

    It runs in a thread of its own: a signal would need the main one, a process the whole network.

    Raises:
        TimeLimit: it did not.
    """
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.extend((True, function()))
        except BaseException as e:
            outcome.extend((False, e))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        # Stops pure Python at its next instruction, which is what hangs.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident or 0), ctypes.py_object(TimeLimit)
        )
        thread.join(1)
        raise TimeLimit
    ended, value = outcome
    if not ended:
        raise value
    return value


# ---------------------------------------------------------------- a network that can be traced


class _Opaque(nn.Module):
    """For layers that know their channels and how to keep some (`keep_channels`): a 1×1 convolution
    of the same widths, whose result has the layer's shape."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.real = [layer]  # in a list: not to be traced
        self.mix = nn.Conv2d(layer.in_channels, layer.out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.real[0](x).detach() + self.mix(x).mean((2, 3), keepdim=True)


class _Recurrent(nn.Module):
    """For LSTM and GRU: a dense layer of the same widths, with the same kinds of outputs."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.batch_first = layer.batch_first
        self.is_lstm = isinstance(layer, nn.LSTM)
        self.directions = 2 if layer.bidirectional else 1
        self.states = layer.num_layers * self.directions
        self.mix = nn.Linear(layer.input_size, layer.hidden_size)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        y = self.mix(x)
        last = y[:, -1] if self.batch_first else y[-1]
        states = torch.stack([last] * self.states)
        out = torch.cat([y] * self.directions, -1) if self.directions > 1 else y
        return out, (states, states) if self.is_lstm else states


def _stand_in(layer: nn.Module) -> nn.Module | None:
    if hasattr(layer, "keep_channels"):
        return _Opaque(layer)
    if isinstance(layer, nn.RNNBase) and not layer.proj_size:
        return _Recurrent(layer)
    if type(layer).__name__ == "Conv1D" and hasattr(layer, "nf"):
        return nn.Linear(layer.nx, layer.nf)
    return None


def _traceable(model: nn.Module) -> tuple[nn.Module, dict[str, tuple[str, str]]]:
    """A copy with stand-ins, and ``{name in the copy: (name in the model, its out axis)}``."""
    traced = copy.deepcopy(model).eval()
    real_name: dict[str, tuple[str, str]] = {}
    for name, layer in list(traced.named_modules()):
        stand_in = _stand_in(layer)
        if stand_in is None:
            continue
        parent, _, child = name.rpartition(".")
        setattr(traced.get_submodule(parent), child, stand_in.eval())
        inner = name if isinstance(stand_in, nn.Linear) else f"{name}.mix"
        real_name[inner] = (name, "hidden" if isinstance(layer, nn.RNNBase) else "out")
    for parameter in traced.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return traced, real_name


def _record_calls(model: nn.Module, inputs: Any) -> dict[str, tuple[tuple, dict]]:
    """With which arguments each submodule was called first."""
    calls: dict[str, tuple[tuple, dict]] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, named: dict) -> None:
            calls.setdefault(name, (args, named))

        return hook

    hooks = [
        module.register_forward_pre_hook(record(name), with_kwargs=True)
        for name, module in model.named_modules()
    ]
    try:
        with torch.no_grad():
            forward(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _renamed(group: FoundGroup, prefix: str, real_name: dict[str, tuple[str, str]]) -> FoundGroup:
    slices = []
    for piece in group.slices:
        name, axis = prefix + piece.layer, piece.axis
        if name in real_name:
            name, out_axis = real_name[name]
            axis = out_axis if axis == "out" else axis
        slices.append(Slice(name, axis, piece.unit_of))
    root = prefix + group.root
    return FoundGroup(real_name.get(root, (root,))[0], group.size, slices, group.attention)


# ---------------------------------------------------------------- Torch-Pruning's graph, read


def _read_graph(model: nn.Module, args: tuple, named: dict) -> Found:
    import torch_pruning as tp

    graph = tp.DependencyGraph()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # guesses of its own, which the proof checks
        graph.build_dependency(
            model,
            example_inputs=args,
            forward_fn=lambda module, _: module(*args, **named),
            # A copy: an output must not be the layer that made it, or the graph ends there unseen.
            output_transform=lambda out: [t.clone() for t in tensors_of(out) if t.requires_grad],
            verbose=False,
        )
        found, seen = Found(), set()
        for name, layer in model.named_modules():
            pruner = graph.get_pruner_of_module(layer) if layer in graph.module2node else None
            if not _has_weight(layer) or pruner is None or name in seen:
                continue
            width = pruner.get_out_channels(layer)
            items = _items(graph, layer, range(width))
            seen |= {piece[0] for piece in items if piece[1] == "out"}
            if any(piece[0] is None for piece in items):
                continue  # an output of the network
            try:
                group = _group(graph, model, layer, name, items)
            except ValueError as e:  # a layer with an axis that cannot be cut
                found.notes.append(f"{name}: left as it is, {one_line(e)}")
                continue
            if group.size > 1:
                found.groups.append(group)
    return found


# (layer's name or None for an output, axis, positions, the root's channel of each, node's name)
_Item = tuple[Any, str, list[int], list[int], str]


def _items(graph: Any, layer: nn.Module, channels: Any) -> list[_Item]:
    pruner = graph.get_pruner_of_module(layer)
    group = graph.get_pruning_group(layer, pruner.prune_out_channels, list(channels))
    items: list[_Item] = []
    for item in group:
        module, handler = item.dep.target.module, item.dep.handler
        if isinstance(module, nn.Parameter):
            name = graph._param_to_name[module]
            axis = f"dim{item.dep.target.pruning_dim % module.dim()}"
        elif type(module).__name__ == "_OutputOp":
            name, axis = None, ""
        elif module not in graph._module2name:  # an operation, no layer
            items.append(("", "", [], [], str(module).lower()))
            continue
        else:
            name = graph._module2name[module]
            axis = "out" if graph.is_out_channel_pruning_fn(handler) else "in"
        roots = [0 if root is None else root for root in item.root_idxs]
        items.append((name, axis, list(item.idxs), roots, ""))
    return items


def _group(graph: Any, model: nn.Module, layer: nn.Module, root: str, items: list) -> FoundGroup:
    width = axis_size(layer, "out")
    unit_of_root = np.arange(width)
    pieces = {(i[0], i[1]): dict(zip(i[2], i[3], strict=True)) for i in items if i[0]}
    attention = any(node in i[4] for i in items for node in ATTENTION_NODES)
    alone = {(i[0], i[1]): i[2] for i in _items(graph, layer, [0]) if i[0]}
    if len(alone.get((root, "out"), [0])) > 1:
        # Channels of the root go together (its halves meet again): asked for one by one.
        pieces, unit_of_root = _coupled(graph, layer, width)
    units = {
        key: np.array([unit_of_root[places[p]] if p in places else -1 for p in range(size)])
        for key, places in pieces.items()
        for size in [_size(model, *key)]
    }
    units = _tie_within_groups(model, units, width)
    labels = sorted({u for axis in units.values() for u in axis if u >= 0})
    number = {label: index for index, label in enumerate(labels)}
    slices = [
        Slice(name, axis, np.array([number.get(u, -1) for u in of], dtype=np.int64))
        for (name, axis), of in units.items()
    ]
    return FoundGroup(root, len(labels), slices, attention)


def _coupled(graph: Any, layer: nn.Module, width: int) -> tuple[dict, np.ndarray]:
    pieces: dict[Any, dict[int, int]] = {}
    unit_of_root = np.full(width, -1)
    for channel in range(width):
        if unit_of_root[channel] >= 0:
            continue
        for name, axis, positions, _, _ in _items(graph, layer, [channel]):
            if name:
                pieces.setdefault((name, axis), {}).update(dict.fromkeys(positions, channel))
                if axis == "out" and graph._module2name.get(layer) == name:
                    unit_of_root[positions] = channel
    return pieces, np.arange(width)


def _size(model: nn.Module, name: str, axis: str) -> int:
    if axis.startswith("dim"):
        return model.get_parameter(name).shape[int(axis[3:])]
    return axis_size(model.get_submodule(name), axis)


def _tie_within_groups(
    model: nn.Module, units: dict[Any, np.ndarray], width: int
) -> dict[Any, np.ndarray]:
    """Grouped convolutions and group norms keep as many channels in each of their groups: the same
    place of every group is one unit."""
    leader = np.arange(width)

    def find(u: int) -> int:
        while leader[u] != u:
            u = leader[u]
        return u

    for (name, axis), of in units.items():
        layer = None if axis.startswith("dim") else model.get_submodule(name)
        count = getattr(layer, "groups", getattr(layer, "num_groups", 1))
        depthwise = (
            count == getattr(layer, "in_channels", None) == getattr(layer, "out_channels", 0)
        )
        if not isinstance(count, int) or count == 1 or depthwise:
            continue
        each = len(of) // count
        for position in range(each, len(of)):
            a, b = of[position], of[position % each]
            if a >= 0 and b >= 0:
                leader[max(find(a), find(b))] = min(find(a), find(b))
    return {key: np.array([find(u) if u >= 0 else -1 for u in of]) for key, of in units.items()}
