"""What a training step minimises: a function ``(module, inputs, targets) -> scalar tensor``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .settings import TrainSettings

Loss = Callable[[nn.Module, dict[str, Tensor], Any], Tensor]


def classification_loss(settings: TrainSettings) -> Loss:
    """The loss that `settings` names, over ``[batch, classes]`` logits and ``[batch]`` classes."""

    def cross_entropy(module: nn.Module, inputs: dict[str, Tensor], targets: Tensor) -> Tensor:
        logits = module(**inputs).float()
        return F.cross_entropy(logits, targets, label_smoothing=settings.label_smoothing)

    def mse(module: nn.Module, inputs: dict[str, Tensor], targets: Tensor) -> Tensor:
        outputs = module(**inputs).float()
        return F.mse_loss(outputs, F.one_hot(targets, outputs.shape[1]).float())

    return mse if settings.loss == "mse" else cross_entropy
