"""Prune a torch network, as one function for a user's own loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import EdgemlError, InputError, nearest
from ..train.losses import Loss
from ..train.prune_history import Entry, replay
from .prune_graph import try_forward
from .prune_groups import KINDS, Group, Importance, Kind, check_torch_module, entry_of, find_groups


def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    keep: Mapping[str, int | Sequence[int]] | None = None,
    ratio: float | None = None,
    round_to: int = 1,
    importance: Importance = "magnitude",
    loss: Loss | None = None,
    batches: Iterable[tuple[dict[str, torch.Tensor], Any]] | None = None,
    kinds: Sequence[Kind] = KINDS,
    groups: Sequence[Group] | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> tuple[nn.Module, list[Entry]]:
    """A smaller copy of `model`, and the history that makes it again.

    Args:
        example_inputs, importance, loss, batches, kinds, log: see `find_groups`.
        keep: ``{group's name: how many units, or which}``; a block's 0 leaves it out. Groups that
            are not named stay whole.
        ratio: instead: the share of every group's units that goes, the least important ones; blocks
            stay.
        round_to: with `ratio`: sizes are rounded up to a multiple of this.
        groups: those that `find_groups` gave for this model, to save looking again.

    Returns:
        The pruned network in eval mode, and its history (`apply_history`).

    Raises:
        InputError: neither or both of `keep` and `ratio`, an unknown group, a number outside it, or
            nothing can be pruned.
        EdgemlError: nothing was removed.

    >>> from edgeml.train.zoo.resnet import resnet
    >>> net, history = prune(resnet(8), torch.zeros(2, 3, 32, 32), keep={"layer1.0.conv1": 8})
    >>> net.layer1[0].conv1, history[0]["op"]
    (Conv2d(16, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False), 'channels')
    """
    check_torch_module(model)
    if (keep is None) == (ratio is None):
        raise InputError("prune takes either keep={group: units} or ratio=0.5, and one of them")
    if groups is None:
        groups = find_groups(
            model,
            example_inputs,
            importance=importance,
            loss=loss,
            batches=batches,
            kinds=kinds,
            log=log,
        )
    wanted = _by_ratio(groups, ratio or 0.0, round_to) if keep is None else _asked(groups, keep)
    history = history_of(groups, wanted)
    if not history:
        raise EdgemlError(f"pruning removed nothing from {type(model).__name__}: all stays")
    pruned = replay(copy.deepcopy(model).eval(), history)
    _check_smaller(model, pruned)
    return pruned, history


def apply_history(model: nn.Module, example_inputs: Any, history: list[Entry]) -> nn.Module:
    """Do to `model`, in place, what `history` says, and run it once on `example_inputs`.

    The history of a later pruning is appended to that of an earlier one. Weights are loaded
    afterwards (`train.weights.load_weights`).

    Args:
        example_inputs: see `find_groups`; None leaves the run out.

    Raises:
        ModelError: the history is of another network.
        InputError: the pruned network does not run on the inputs.
    """
    check_torch_module(model)
    replay(model, history)
    if example_inputs is not None:
        try_forward(model, example_inputs)
    return model


def history_of(groups: Sequence[Group], kept: Mapping[str, Sequence[int]]) -> list[Entry]:
    """The entries that keep some units of some groups; blocks first.

    Args:
        groups: of the network as it is now.
        kept: ``{group's name: units that stay}``; a whole group gives no entry.
    """
    gone = [g.name for g in groups if g.kind == "block" and g.name in kept and not kept[g.name]]
    alive: dict[Any, np.ndarray] = {}
    entries = [entry_of(g, [], alive) for g in groups if g.kind == "block" and g.name in gone]
    for group in groups:
        if group.kind == "block" or len(kept.get(group.name, range(group.size))) == group.size:
            continue
        entry = entry_of(group, kept[group.name], alive)
        entry["layers"] = [piece for piece in entry["layers"] if not _within(piece[0], gone)]
        if "set" in entry:
            entry["set"] = {n: v for n, v in entry["set"].items() if not _within(n, gone)}
        if entry["layers"]:
            entries.append(entry)
    return entries


def _within(name: str, blocks: list[str]) -> bool:
    return any(name == block or name.startswith(f"{block}.") for block in blocks)


def _asked(
    groups: Sequence[Group], keep: Mapping[str, int | Sequence[int]]
) -> dict[str, list[int]]:
    known = {group.name: group for group in groups}
    wanted = {}
    for name, units in keep.items():
        if name not in known:
            raise InputError(f"no group {name!r} can be pruned, {nearest(name, known)}")
        group = known[name]
        least = 0 if group.kind == "block" else 1
        if isinstance(units, int):
            if not least <= units <= group.size:
                raise InputError(f"{name} has {group.size} units and cannot keep {units}")
            wanted[name] = group.best(units)
            continue
        listed = sorted(int(u) for u in units)
        if len(listed) < least or listed != sorted(set(listed) & set(range(group.size))):
            raise InputError(f"{name} has units 0 to {group.size - 1} and cannot keep {listed}")
        wanted[name] = listed
    return wanted


def _by_ratio(groups: Sequence[Group], ratio: float, round_to: int) -> dict[str, list[int]]:
    if not 0 < ratio < 1 or round_to < 1:
        raise InputError(
            f"ratio {ratio:g} must lie between 0 and 1, round_to {round_to} be 1 or more"
        )
    wanted = {}
    for group in groups:
        if group.kind == "block":
            continue
        count = -(-max(1, round(group.size * (1 - ratio))) // round_to) * round_to
        wanted[group.name] = group.best(min(count, group.size))
    return wanted


def _check_smaller(model: nn.Module, pruned: nn.Module) -> None:
    before, after = (sum(p.numel() for p in net.parameters()) for net in (model, pruned))
    if after >= before:  # success that did nothing
        raise EdgemlError(f"pruning removed nothing: {after:,} parameters, as before")
