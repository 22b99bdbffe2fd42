"""How an attention's channels are cut: whole heads, or the same places of every head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from .prune_graph import FoundGroup, Slice

# What libraries call the number of heads, on the attention or on the layer around it.
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "nhead", "num_head")
# What they call heads × head size, and the size of a head.
WIDTHS = ("all_head_size", "inner_dim", "attn_dim", "attention_dim")
SIZES = ("attention_head_size", "head_size", "head_dim", "dim_per_head", "attention_head_dim")
# A group has the attention's name and one of these (a block may have the bare name).
HEADS_SUFFIX, HEAD_SIZE = ".heads", ".head_size"

# (module, ((attribute, its value now), …)), …: scaled by the share of units kept.
Attributes = tuple[tuple[str, tuple[tuple[str, int], ...]], ...]


@dataclass(frozen=True)
class AttentionGroup:
    """A found group by heads, or by places within heads.

    Attributes:
        name: of the module that counts the heads, and a suffix.
        attributes: whole numbers that its forward reads.
    """

    name: str
    group: FoundGroup
    attributes: Attributes


def attention_groups(model: nn.Module, group: FoundGroup) -> list[list[AttentionGroup]]:
    """The ways to cut a group by heads, then those to cut all heads to a smaller size.

    Each list has one cut with the attributes that are known by name, then with all that have the
    number in question; which one is right, the proof tells (`prune_proof`). Empty where no
    attribute counts the heads.
    """
    name, attribute = _counter(model, group.root)
    if name is None:
        return []
    module = model.get_submodule(name)
    heads = getattr(module, attribute)
    if group.size % heads:
        return []
    size = group.size // heads
    numbers = {n: v for n, v in vars(module).items() if type(v) is int}
    whole = [n for n, v in numbers.items() if v == group.size]
    sizes = [n for n, v in numbers.items() if v == size and n in SIZES]
    ways = [
        (name + HEADS_SUFFIX, heads, lambda unit: unit // size, [attribute]),
        (name + HEAD_SIZE, size, lambda unit: unit % size, sizes),
    ]
    found = []
    for label, count, unit_of, counted in ways:
        if count < 2:
            continue
        cut = FoundGroup(group.root, count, _relabelled(group.slices, unit_of), True)
        variants = []
        for widths in dict.fromkeys((tuple(n for n in whole if n in WIDTHS), tuple(whole))):
            read = tuple((n, numbers[n]) for n in (*counted, *widths))
            variants.append(AttentionGroup(label, cut, ((name, read),) if read else ()))
        found.append(variants)
    return found


def _relabelled(
    slices: Sequence[Slice], unit_of: Callable[[np.ndarray], np.ndarray]
) -> list[Slice]:
    return [
        Slice(s.layer, s.axis, np.where(s.unit_of >= 0, unit_of(s.unit_of), -1)) for s in slices
    ]


def _counter(model: nn.Module, layer: str) -> tuple[str | None, str]:
    """The nearest module around a layer that says how many heads there are, and where it does."""
    while layer:
        layer = layer.rpartition(".")[0]
        module = model.get_submodule(layer)
        for attribute in HEADS:
            if type(getattr(module, attribute, None)) is int:
                return layer, attribute
    return None, ""
