"""Feature distillation: a student's blocks are pulled to the teacher's of the same names.

FitNets (Romero et al. 2015, arXiv:1412.6550, section 2.2): the outputs of layers inside are learnt from,
through a projection where widths differ. Here every block that both networks still have is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..train.prune_history import RemovedBlock

# Rows of features that a projection's first weights are fitted to: some hundreds more than any width.
FITTED_ROWS = 8192


class FeatureStudent(nn.Module):
    """A student and what carries its features to the teacher's widths; trained as one module.

    Made by `feature_student`. ``student`` is the network itself, trained in place.

    Args:
        projections: by block, in order; Identity where the widths are equal.
        axes: the features' axis of width a block.
    """

    def __init__(
        self, student: nn.Module, projections: Mapping[str, nn.Module], axes: Mapping[str, int]
    ) -> None:
        super().__init__()
        self.student = student
        self.projections = nn.ModuleList(projections.values())
        self.blocks, self.axes = list(projections), dict(axes)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.student(*inputs, **named)

    def distance(self, own: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
        """The mean over the blocks of the squared error relative to the teacher's mean square: 0 where
        all are equal, about 1 where nothing is known. A scalar."""
        parts = []
        for name, projection in zip(self.blocks, self.projections, strict=True):
            if name not in own:  # skipped in this step, as LayerDrop does
                continue
            axis, target = self.axes[name], wanted[name].float()
            mapped = projection(own[name].movedim(axis, -1)).movedim(-1, axis).float()
            parts.append(F.mse_loss(mapped, target) / target.square().mean().clamp_min(1e-12))
        if not parts:
            return next(iter(wanted.values())).new_zeros(())
        return torch.stack(parts).mean()


def feature_student(
    student: nn.Module, teacher: nn.Module, inputs: Mapping[str, Tensor]
) -> FeatureStudent:
    """Wrap `student`, so that `distillation_loss` learns from the teacher's features, too.

    A block is a module with weights inside a Sequential or ModuleList, of nested ones the outer. It is
    matched with the teacher's of its name; one that depth pruning removed, and one that differs in more
    than its width, drops out. A 1×1 projection (a linear map of the channels at every position) is
    added where the width differs; its first weights are the least squares fit on `inputs`.

    Args:
        inputs: one batch, ``{input: [n, …]}``.

    Returns:
        A module that calls `student`; train it, then take its ``.student``.

    Raises:
        InputError: no block has its counterpart.

    >>> net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    >>> feature_student(net, net, {"input": torch.ones(4, 2)}).blocks
    ['0']
    """
    names = [name for name in blocks_of(student) if name in set(blocks_of(teacher))]
    with _evaluating(student), _evaluating(teacher), torch.no_grad():
        own, output = features(student, names, inputs)
        wanted, _ = features(teacher, names, inputs)
    projections: dict[str, nn.Module] = {}
    axes: dict[str, int] = {}
    for name in names:
        if name not in own or name not in wanted or own[name] is output:
            continue  # not called, or what it gives is matched as the output already
        axis = _axis_of_width(own[name], wanted[name])
        if axis is not None:
            axes[name] = axis
            projections[name] = _projection(
                own[name].movedim(axis, -1), wanted[name].movedim(axis, -1)
            )
    if not projections:
        raise InputError(
            f"features: no block of {type(student).__name__} has its like in the teacher; leave out "
            "features: true"
        )
    return FeatureStudent(student, projections, axes)


def blocks_of(module: nn.Module) -> list[str]:
    """Names of the blocks, in the network's order; those removed by depth pruning are none."""
    found: list[str] = []
    for name, parent in module.named_modules():
        if not isinstance(parent, (nn.Sequential, nn.ModuleList)) or _within(name, found):
            continue
        found += [
            f"{name}.{child}" if name else child
            for child, part in parent.named_children()
            if not isinstance(part, RemovedBlock) and any(p.dim() > 1 for p in part.parameters())
        ]
    return found


def features(
    module: nn.Module, names: list[str], inputs: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], Tensor]:
    """One forward pass: the (first) output of each named block, and that of the network."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(part: nn.Module, args: Any, output: Any) -> None:
            found[name] = first_output(output)

        return hook

    # Per call, not for good: copies of the module must not write into another's.
    hooks = [module.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        return found, first_output(module(**inputs))
    finally:
        for hook in hooks:
            hook.remove()


def first_output(outputs: Any) -> Tensor:
    """The tensor that a network's outputs begin with."""
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, dict):
        return first_output(next(iter(outputs.values())))
    if isinstance(outputs, (tuple, list)):
        return first_output(outputs[0])
    raise InputError(f"the network gives {type(outputs).__name__}; distillation needs tensors")


def _within(name: str, blocks: list[str]) -> bool:
    return any(name == block or name.startswith(f"{block}.") for block in blocks)


def _axis_of_width(own: Tensor, wanted: Tensor) -> int | None:
    """Where two features differ; None where they differ in more than one width."""
    if own.dim() != wanted.dim() or own.dim() < 2 or not own.is_floating_point():
        return None
    differ = [a for a in range(own.dim()) if own.shape[a] != wanted.shape[a]]
    if not differ:
        return 1
    return differ[0] if len(differ) == 1 and differ[0] > 0 else None


def _projection(own: Tensor, wanted: Tensor) -> nn.Module:
    """``[…, width]`` to the teacher's width: a linear map, or nothing where they are equal.

    Fitted, not drawn: drawn weights would first pull a pruned student away from what it kept.
    """
    width, target = own.shape[-1], wanted.shape[-1]
    if width == target:
        return nn.Identity()
    x, y = own.reshape(-1, width).float().cpu(), wanted.reshape(-1, target).float().cpu()
    step = max(1, len(x) // FITTED_ROWS)
    x, y = x[::step], y[::step]
    ones = torch.cat([x, torch.ones(len(x), 1)], 1)
    fitted = torch.linalg.lstsq(ones, y, driver="gelsd").solution  # dead channels leave it singular
    projection = nn.utils.skip_init(nn.Linear, width, target)
    with torch.no_grad():
        projection.weight.copy_(fitted[:-1].T)
        projection.bias.copy_(fitted[-1])
    return projection.to(own.device)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """In eval mode for a while: a look at features must not move BatchNorm's statistics."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
