"""Distillation: a loss that pulls a student's outputs to a teacher's, for any training loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..train.losses import Loss
from .feature_distil import FeatureStudent, features, first_output

# The input that holds the teacher's stored outputs; no forward() has a parameter of this name.
STORED = "the teacher's outputs"


def distillation_loss(
    teacher: nn.Module,
    temperature: float = 4.0,
    alpha: float = 0.9,
    task_loss: Loss | None = None,
) -> Loss:
    """``(module, inputs, targets) -> scalar``: alpha · teacher's part + (1 − alpha) · the task's.

    The teacher's part is Hinton et al. 2015, section 2: KL divergence between the softmaxes at
    `temperature`, times temperature². Outputs that are no ``[batch, classes]`` with two classes or more
    (one number a sample, maps, sequences) are matched by their mean squared error. An embedding
    ``[batch, width]`` is taken for classes: its softmax does not see what all its numbers share.

    Where the module is a `feature_student`, the distance of its blocks' outputs to the teacher's is
    added to the teacher's part.

    Args:
        teacher: runs in eval mode and without gradients; its weights stay as they are.
        alpha: 1 trains without labels; then targets may be None.
        task_loss: the task's own part; None is cross-entropy over ``[batch]`` class numbers.

    Raises:
        InputError: teacher and student have outputs of different shapes (from the returned loss).

    >>> net = nn.Linear(2, 3)
    >>> loss = distillation_loss(net, alpha=1.0)
    >>> abs(float(loss(net, {"input": torch.ones(4, 2)}, None).detach())) < 1e-6
    True
    """
    teacher.eval()

    def loss(module: nn.Module, inputs: dict[str, Tensor], targets: Any) -> Tensor:
        student = module.student if isinstance(module, FeatureStudent) else module
        blocks = module.blocks if isinstance(module, FeatureStudent) else []
        inputs = dict(inputs)
        stored = inputs.pop(STORED, None)
        if alpha == 0 and targets is not None:
            if task_loss:
                return task_loss(student, inputs, targets)
            return F.cross_entropy(first_output(student(**inputs)).float(), targets)
        inside, own = features(student, blocks, inputs)
        if stored is not None:
            aims, wanted = {}, stored
        else:
            with torch.no_grad():
                aims, wanted = features(teacher, blocks, inputs)
        own, wanted = own.float(), wanted.float()
        if own.shape != wanted.shape:
            raise InputError(
                f"teacher and student have different outputs, {list(wanted.shape)} and "
                f"{list(own.shape)}: distillation needs the same"
            )
        near = match(own, wanted, temperature)
        if blocks:
            near = near + module.distance(inside, aims)
        if alpha == 1 or targets is None:
            return near
        labels = task_loss(student, inputs, targets) if task_loss else F.cross_entropy(own, targets)
        return alpha * near + (1 - alpha) * labels

    return loss


def match(own: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """How far `own` is from `wanted`, both of one shape: a scalar, 0 where they are equal."""
    if own.dim() != 2 or own.shape[1] == 1:  # the softmax of one number is 1, whatever it is
        return F.mse_loss(own, wanted)
    soft = F.log_softmax(own / temperature, 1), F.log_softmax(wanted / temperature, 1)
    return F.kl_div(*soft, reduction="batchmean", log_target=True) * temperature**2
