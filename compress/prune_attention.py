"""How an attention's channels are cut: whole heads, with the numbers that its forward reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import nn

from .prune_graph import FoundGroup, Slice

# What libraries call the number of heads, on the attention or on the layer around it.
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "nhead", "num_head")
# What they call heads × head size.
WIDTHS = ("all_head_size", "inner_dim", "attn_dim", "attention_dim")


@dataclass(frozen=True)
class HeadGroup:
    """A found group whose units are heads.

    Attributes:
        name: of the module that counts the heads.
        attributes: ``((module, ((attribute, factor), …)), …)``: factor × heads kept.
    """

    name: str
    group: FoundGroup
    attributes: tuple[tuple[str, tuple[tuple[str, int], ...]], ...]


def attention_variants(model: nn.Module, group: FoundGroup) -> Iterator[HeadGroup]:
    """The ways to cut a group by heads: the attributes known by name, then all that say its width.

    Which one is right, the proof tells (`prune_proof`).
    """
    name, attribute = _counter(model, group.root)
    if name is None:
        return
    module = model.get_submodule(name)
    heads = getattr(module, attribute)
    if group.size % heads or heads < 2:
        return
    head_size = group.size // heads
    by_head = FoundGroup(
        group.root,
        heads,
        [
            Slice(s.layer, s.axis, np.where(s.unit_of >= 0, s.unit_of // head_size, -1))
            for s in group.slices
        ],
        True,
    )
    whole = [n for n, v in vars(module).items() if type(v) is int and v == group.size]
    known = [n for n in whole if n in WIDTHS]
    for widths in dict.fromkeys((tuple(known), tuple(whole))):
        factors = ((attribute, 1), *((width, head_size) for width in widths))
        yield HeadGroup(name, by_head, ((name, factors),))


def _counter(model: nn.Module, layer: str) -> tuple[str | None, str]:
    """The nearest module around a layer that says how many heads there are, and where it does."""
    while layer:
        layer = layer.rpartition(".")[0]
        module = model.get_submodule(layer)
        for attribute in HEADS:
            if type(getattr(module, attribute, None)) is int:
                return layer, attribute
    return None, ""
