"""How much each unit of a group, and each block, is worth: an estimate of what removing it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..train.losses import Loss
from .prune_attention import HEAD_SIZE
from .prune_blocks import without_block
from .prune_graph import Slice, forward, tensors_of
from .prune_proof import channel_dim, readers

Importance = Literal["magnitude", "bn_scale", "taylor"]
Data = list[tuple[dict[str, Tensor], Any]]


class Scored(Protocol):
    """What is needed of a group."""

    size: int
    slices: Sequence[Slice]


def score_groups(
    model: nn.Module,
    groups: Sequence[Any],
    importance: Importance,
    loss: Loss | None,
    data: Data | None,
) -> list[np.ndarray]:
    """One float64 [size] a group, none below zero.

    ``magnitude``: the L2 norm of all weights of a unit (Li et al. 2017, arXiv:1608.08710, over the
    whole group as in DepGraph); ``bn_scale``: the batch norms' |γ| (Liu et al. 2017,
    arXiv:1708.06519), magnitude where there is none. Both are relative to the group's mean, so
    units of different groups do not compare. ``taylor``: the first-order change of the loss when
    what reads the unit gets zeros, |Σ x · ∂loss/∂x| a sample, averaged (Molchanov et al. 2019,
    arXiv:1906.10771, gates in front of the readers): in units of the loss, as blocks are.

    Raises:
        InputError: an unknown importance, or a loss that is not finite.
    """
    if importance == "taylor":
        return _taylor(model, groups, loss, data)
    if importance not in ("magnitude", "bn_scale"):
        raise InputError(f"importance {importance!r}; known: magnitude, bn_scale, taylor")
    return [_by_weights(model, group, importance) for group in groups]


def _by_weights(model: nn.Module, group: Scored, importance: Importance) -> np.ndarray:
    norms = []
    for piece in group.slices:
        layer = None if piece.axis.startswith("dim") else model.get_submodule(piece.layer)
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.affine:
            norms.append((piece, layer.weight.detach().abs().double().cpu().numpy()))
    if importance == "bn_scale" and norms:
        total = sum(_by_unit(piece, values, group.size) for piece, values in norms)
    else:
        total = np.zeros(group.size)
        for piece in group.slices:
            total += _by_unit(piece, _squares(model, piece), group.size)
        total = np.sqrt(total)
    mean = total.mean()
    return total / mean if mean > 0 else total


def _by_unit(piece: Slice, values: np.ndarray, size: int) -> np.ndarray:
    """Sum a value a position to one a unit."""
    counted = piece.unit_of >= 0
    return np.bincount(piece.unit_of[counted], weights=values[counted], minlength=size)


def _squares(model: nn.Module, piece: Slice) -> np.ndarray:
    """The sum of squared weights at each position of an axis; 0 for layers that only scale."""
    nothing = np.zeros(len(piece.unit_of))
    if piece.axis.startswith("dim"):
        return nothing
    layer = model.get_submodule(piece.layer)
    if piece.axis == "hidden":
        weights = [(w, 0) for n, w in layer.named_parameters() if n.startswith("weight")]
    elif isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)) or hasattr(layer, "nx"):
        flipped = getattr(layer, "transposed", hasattr(layer, "nx"))
        weights = [(layer.weight, int((piece.axis == "in") != flipped))]
    else:
        return nothing
    total = nothing
    for weight, dim in weights:
        rest = [d for d in range(weight.dim()) if d != dim]
        sums = weight.detach().double().square().sum(rest).cpu().numpy()
        # Gates of an RNN follow each other; of a grouped convolution one axis is a group's.
        fold = len(total)
        total = total + (
            sums.reshape(-1, fold).sum(0)
            if len(sums) >= fold
            else np.tile(sums, fold // len(sums)) / (fold // len(sums))
        )
    return total


def _taylor(
    model: nn.Module, groups: Sequence[Any], loss: Loss | None, data: Data | None
) -> list[np.ndarray]:
    if loss is None or data is None:
        raise InputError("importance taylor needs a loss and batches; magnitude needs neither")
    totals, samples = [np.zeros(group.size) for group in groups], 0
    change: dict[tuple[int, int], Tensor] = {}  # (group, rows) -> [rows, size], of one batch
    hooks = []
    for number, group in enumerate(groups):
        within_heads = group.name.endswith(HEAD_SIZE)
        for piece in group.slices if within_heads else readers(model, group):
            layer = model.get_submodule(piece.layer)
            gate = _gate(number, group.size, piece, layer, change)
            if piece.axis == "in" and not within_heads:
                hooks.append(layer.register_forward_pre_hook(lambda _, args, g=gate: g(args)))
            elif piece.axis == "out":  # queries and keys are read by each other
                hooks.append(layer.register_forward_hook(lambda _, args, y, g=gate: g((y,))[0]))
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    try:
        for inputs, targets in data:
            change.clear()
            value = loss(model, inputs, targets)
            _check_finite(value)
            value.backward()
            model.zero_grad()
            for (number, _), moved in change.items():
                # The mean over the batch is in the gradient already.
                totals[number] += moved.abs().sum(0).double().cpu().numpy()
            samples += 1
    finally:
        for hook in hooks:
            hook.remove()
    return [total / max(samples, 1) for total in totals]


def _gate(
    number: int, size: int, piece: Slice, layer: nn.Module, change: dict[tuple[int, int], Tensor]
) -> Callable[..., Any]:
    counted = piece.unit_of >= 0
    places = torch.as_tensor(np.flatnonzero(counted))
    units = torch.as_tensor(piece.unit_of[counted])

    def gate(args: tuple) -> tuple:
        if not args[0].requires_grad:
            return args
        x = args[0].view_as(args[0])  # its gradient is this reader's alone

        def add(gradient: Tensor) -> None:
            product = (x.detach() * gradient).transpose(channel_dim(layer, x), -1)
            product = product.reshape(len(product), -1, product.shape[-1]).sum(1).float()
            moved = change.setdefault((number, len(product)), product.new_zeros(len(product), size))
            moved.index_add_(1, units.to(x.device), product[:, places.to(x.device)])

        x.register_hook(add)
        return (x, *args[1:])

    return gate


def score_blocks(
    model: nn.Module,
    names: Sequence[str],
    example_inputs: Any,
    loss: Loss | None,
    data: Data | None,
) -> list[float]:
    """What leaving out each block alone costs: the rise of the loss over `data`, at least 0;
    without data the relative change of the outputs on the example inputs."""
    if not names:
        return []
    with torch.no_grad():
        if loss is not None and data is not None:
            before = _mean_loss(model, loss, data)
            rises = []
            for name in names:
                with without_block(model, name):
                    rises.append(max(0.0, _mean_loss(model, loss, data) - before))
            return rises
        whole = torch.cat(
            [t.flatten().double() for t in tensors_of(forward(model, example_inputs))]
        )
        changes = []
        for name in names:
            with without_block(model, name):
                part = tensors_of(forward(model, example_inputs))
            moved = torch.cat([t.flatten().double() for t in part]) - whole
            changes.append(float(moved.norm() / whole.norm().clamp(min=1e-30)))
        return changes


def _mean_loss(model: nn.Module, loss: Loss, data: Data) -> float:
    return float(np.mean([float(loss(model, inputs, targets)) for inputs, targets in data]))


def _check_finite(value: Tensor) -> None:
    if not bool(torch.isfinite(value)):
        raise InputError(
            f"the loss is {float(value.detach())} on a batch: no importance can be read from it"
        )
