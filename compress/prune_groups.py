"""What can be removed from a network, unit by unit: channels, heads, hidden units, blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ..errors import InputError, ModelError, OutOfReach
from ..train.losses import Loss
from ..train.prune_history import Entry
from .prune_attention import HEAD_SIZE, HEADS_SUFFIX, Attributes, attention_groups
from .prune_blocks import Block, find_blocks
from .prune_graph import FoundGroup, Slice, find_in_graph
from .prune_importance import Importance, score_blocks, score_groups
from .prune_proof import failure, mixes_channels

Kind = Literal["channels", "heads", "hidden", "rnn_hidden", "block"]
KINDS: tuple[Kind, ...] = ("channels", "heads", "hidden", "rnn_hidden", "block")


@dataclass(frozen=True, eq=False)
class Group:
    """Units that can be removed one by one, each with all that depends on it.

    Attributes:
        name: unique; the layer that makes the channels, the block, or the attention with ``.heads`` or
            ``.head_size``.
        kind: ``channels`` (of convolutions, and of a stream that is added to), ``hidden`` (between
            dense layers), ``heads``, ``rnn_hidden``, ``block``.
        size: units now; 1 for a block.
        importance: float64 [size]; see `prune_importance`.
        members: layers that are cut, for reports.
        slices: which positions of which layers each unit holds.
        attributes: ``((module, ((attribute, value now), …)), …)``: whole numbers that a forward
            reads; they shrink as the group does.
        outputs: of a block: how many it returns as a tuple, 0 for a tensor.
    """

    name: str
    kind: Kind
    size: int
    importance: np.ndarray
    members: tuple[str, ...]
    slices: tuple[Slice, ...] = ()
    attributes: Attributes = ()
    outputs: int = 0

    def best(self, count: int) -> list[int]:
        """The `count` most important units, ascending."""
        order = np.argsort(-self.importance, kind="stable")[:count]
        return sorted(int(u) for u in order)


def entry_of(group: Group, kept: Sequence[int], alive: dict[Any, np.ndarray]) -> Entry:
    """The history entry that keeps some of a group's units.

    Args:
        kept: units that stay, ascending, out of ``range(group.size)``.
        alive: ``{(layer, axis): positions left}`` of axes that entries before this one have cut
            (two groups may meet in one axis, behind a concatenation; heads and their size meet in
            one attention), and attributes likewise; updated.
    """
    if group.kind == "block":
        tuple_outputs = {"outputs": group.outputs} if group.outputs else {}
        return {"op": "block", "module": group.name, "kept": [], **tuple_outputs}
    units, layers = np.asarray(kept, dtype=np.int64), []
    for piece in group.slices:
        key = (piece.layer, piece.axis)
        before = alive.get(key, np.arange(len(piece.unit_of)))
        stays = np.isin(before, piece.positions(units))
        alive[key] = before[stays]
        own = np.flatnonzero(stays).tolist()
        layers.append([*key] if own == list(kept) else [*key, own])
    module = group.name
    if group.kind == "heads":
        module = module.removesuffix(HEADS_SUFFIX).removesuffix(HEAD_SIZE)
    entry: Entry = {"op": group.kind, "module": module, "kept": list(kept), "layers": layers}
    for name, attributes in group.attributes:
        for attribute, value in attributes:
            now = alive.get((name, "set", attribute), value) * len(kept) // group.size
            alive[name, "set", attribute] = now
            entry.setdefault("set", {}).setdefault(name, {})[attribute] = now
    return entry


def find_groups(
    model: nn.Module,
    example_inputs: Any,
    *,
    importance: Importance = "magnitude",
    loss: Loss | None = None,
    batches: Iterable[tuple[dict[str, torch.Tensor], Any]] | None = None,
    kinds: Sequence[Kind] = KINDS,
    time_limit_s: float = 60.0,
    log: Callable[[str], None] = lambda line: None,
) -> list[Group]:
    """Everything that can be removed from `model`, with its importance; the model stays as it is.

    Channels that hang together come from Torch-Pruning's dependency graph, blocks are modules of a
    Sequential or ModuleList whose output has their input's shape. Each group is proven on
    `example_inputs`: cutting it gives what masking it gives; one that fails is left out and told.

    Args:
        example_inputs: a tensor, a tuple, or a dict by the names of ``forward``'s parameters;
            batch 2 or more shows what depends on the batch.
        importance: ``magnitude``, ``bn_scale`` or ``taylor``; the last needs `loss` and `batches`,
            and only with it are units of different groups, and blocks, comparable.
        loss: ``(module, inputs, targets) -> scalar``, as `train.fit` takes it.
        batches: of ``({input name: [batch, …]}, targets)``; read once, kept in memory.
        time_limit_s: for one dependency graph.
        log: told what could not be looked at, and why.

    Returns:
        Groups in the network's order, blocks after all others.

    Raises:
        InputError: nothing can be pruned (with the reasons), an ONNX file was given, `taylor`
            without data, or the network does not run on the inputs.
        MissingPart: Torch-Pruning is not installed.
    """
    check_torch_module(model)
    if (importance == "taylor") and (loss is None or batches is None):
        raise InputError("importance taylor needs a loss and batches; magnitude needs neither")
    data = None if batches is None else list(batches)
    work = copy.deepcopy(model).eval()
    notes: list[str] = []
    refuse_branching(work, example_inputs)
    with _layers_are_called():
        groups = _width_groups(work, example_inputs, time_limit_s, notes)
        blocks = find_blocks(work, example_inputs)
    for note in notes:
        log(note)
    if not groups and not blocks:
        reasons = "; ".join(dict.fromkeys(notes)) or "it has no two layers in a row"
        raise OutOfReach(f"{type(model).__name__} has nothing that can be pruned: {reasons}", 1.0)
    groups = [group for group in groups if group.kind in kinds]
    blocks = blocks if "block" in kinds else []
    scores = score_groups(work, groups, importance, loss, data)
    worth = score_blocks(work, [b.name for b in blocks], example_inputs, loss, data)
    found = [replace(g, importance=s) for g, s in zip(groups, scores, strict=True)]
    return found + [_block_group(work, b, w) for b, w in zip(blocks, worth, strict=True)]


@contextmanager
def _layers_are_called() -> Iterator[None]:
    """torch's fused encoder reads its layers' weights past them, and past the hooks of the proof."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def check_torch_module(model: Any) -> None:
    """Refuse what is no torch network.

    Raises:
        ModelError: `model` is something else, such as an ONNX file.
    """
    if isinstance(model, nn.Module):
        return
    if str(model).endswith(".onnx"):
        raise ModelError(
            f"{model} is an ONNX file: pruning, distillation and QAT train weights and need the torch "
            "network; quantization works on ONNX alone"
        )
    raise ModelError(f"pruning needs a torch.nn.Module, got {type(model).__name__}")


def refuse_branching(model: nn.Module, example_inputs: Any) -> None:
    """Refuse a forward that asks a tensor of its own making which way to go.

    Raises:
        InputError: it does; the graph and the export would hold one way only.
    """
    from .prune_branching import branch

    if place := branch(model, example_inputs):
        raise InputError(
            f"{type(model).__name__} decides by its data which way to go ({place}); the graph would "
            "hold one way only: use torch.where, or prune the parts apart"
        )


def _width_groups(
    model: nn.Module, inputs: Any, time_limit_s: float, notes: list[str]
) -> list[Group]:
    found = find_in_graph(model, inputs, time_limit_s)
    notes += found.notes
    shared = _shared_parameters(model)
    candidates: list[list[Group]] = []
    for group in found.groups:
        if tied := next((s.layer for s in group.slices if s.layer in shared), None):
            notes.append(f"{group.root}: left as it is, as {tied} shares its weights")
            continue
        ways = _ways(model, group)
        candidates += ways
        if not ways:
            notes.append(
                f"{group.root}: left as it is, as no attribute counts its attention's heads"
            )
    return _proven(model, inputs, candidates, notes)


def _ways(model: nn.Module, group: FoundGroup) -> list[list[Group]]:
    """The groups that a found one becomes, each as variants of which one is right."""
    if not group.attention:
        return [[_group(model, group, _kind(model, group), group.root)]]
    return [
        [_group(model, v.group, "heads", v.name, v.attributes) for v in variants]
        for variants in attention_groups(model, group)
    ]


def _group(
    model: nn.Module, group: FoundGroup, kind: Kind, name: str, attributes: Any = ()
) -> Group:
    members = tuple(dict.fromkeys(piece.layer for piece in group.slices))
    blank = np.zeros(group.size)
    return Group(name, kind, group.size, blank, members, tuple(group.slices), attributes)


def _kind(model: nn.Module, group: FoundGroup) -> Kind:
    if any(piece.axis == "hidden" for piece in group.slices):
        return "rnn_hidden"
    layers = [model.get_submodule(s.layer) for s in group.slices if not s.axis.startswith("dim")]
    dense = all(isinstance(m, nn.Linear) or hasattr(m, "nx") for m in layers)
    return "hidden" if dense else "channels"


def _proven(
    model: nn.Module, inputs: Any, candidates: list[list[Group]], notes: list[str]
) -> list[Group]:
    """Of each candidate the first variant that the proof passes. Those whose proof is exact are
    proven at once, and one by one only where that fails."""
    exact = [v for v in candidates if not mixes_channels(model, v[0])]
    good: list[Group] = []
    if exact and _failure(model, inputs, [v[0] for v in exact]) is None:
        good = [v[0] for v in exact]
    for variants in candidates:
        if variants[0] in good:
            continue
        why = ""
        for group in variants:
            why = _failure(model, inputs, [group]) or ""
            if not why:
                good.append(group)
                break
        if why and not variants[0].name.endswith(HEAD_SIZE):  # that is a bonus
            notes.append(f"{variants[0].name}: left as it is, {why}")
    order = [variants[0].name for variants in candidates]
    good.sort(key=lambda group: order.index(group.name))
    while good and (why := _failure(model, inputs, good)) is not None:
        notes.append(f"{good[-1].name}: left as it is, together with the others {why}")
        good = good[:-1]
    return good


def _failure(model: nn.Module, inputs: Any, groups: list[Group]) -> str | None:
    rng = np.random.default_rng(0)
    alive: dict[Any, np.ndarray] = {}
    entries, found = [], []
    for group in groups:
        half = rng.choice(group.size, size=(group.size + 1) // 2, replace=False)
        entries.append(entry_of(group, sorted(half.tolist()), alive))
        attention = group.kind == "heads"
        found.append(FoundGroup(group.name, group.size, list(group.slices), attention))
    return failure(model, inputs, found, entries)


def _shared_parameters(model: nn.Module) -> dict[str, str]:
    """Layers (and bare parameters) whose weights another one uses too, and its name."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    shared = {}
    for names in owners.values():
        layers = sorted({name.rpartition(".")[0] for name in names})
        if len(layers) > 1:
            shared |= dict.fromkeys(layers, layers[0]) | dict.fromkeys(names, names[0])
    return shared


def _block_group(model: nn.Module, block: Block, worth: float) -> Group:
    members = tuple(
        f"{block.name}.{name}" if name else block.name
        for name, layer in model.get_submodule(block.name).named_modules()
        if not list(layer.children()) and list(layer.parameters())
    )
    return Group(block.name, "block", 1, np.array([worth]), members, outputs=block.outputs)
