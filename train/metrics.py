"""How well a classifier does: torchmetrics over a set of batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from .batches import Batches
from .losses import Loss


@dataclass(frozen=True)
class ClassificationScores:
    """Scores over a whole set.

    Attributes:
        n: samples.
        loss: mean.
        accuracy: share of right answers.
        precision, recall, f1: macro averages.
        by_class: ``{"precision", "recall", "f1"}``, each [classes].
        confusion: [classes, classes] counts, rows are the true classes.
    """

    n: int
    loss: float
    accuracy: float
    precision: float
    recall: float
    f1: float
    by_class: dict[str, list[float]]
    confusion: list[list[int]]

    def headline(self) -> dict[str, float]:
        """Loss and the single numbers."""
        names = ("loss", "accuracy", "precision", "recall", "f1")
        return {name: getattr(self, name) for name in names}

    def line(self) -> str:
        """One clause for people."""
        names = ("accuracy", "precision", "recall", "f1")
        numbers = ", ".join(f"{name} {getattr(self, name):.2%}" for name in names)
        return f"{numbers} ({self.n:,} samples; macro averages)"


def score_classifier(
    module: nn.Module, batches: Batches, loss: Loss, classes: int
) -> ClassificationScores:
    """Run `module` in eval mode over every batch once, in fp32.

    Args:
        loss: over the same outputs; the network is run once a batch.
    """
    # Under torchrun every process scores the whole set: nothing is to be gathered.
    alone: dict[str, Any] = {"sync_on_compute": False}
    metrics = MetricCollection(
        {
            "accuracy": MulticlassAccuracy(classes, average="micro", **alone),
            "confusion": MulticlassConfusionMatrix(classes, **alone),
            **{
                f"{name}_{average}": kind(
                    classes, average=None if average == "each" else "macro", **alone
                )
                for name, kind in {
                    "precision": MulticlassPrecision,
                    "recall": MulticlassRecall,
                    "f1": MulticlassF1Score,
                }.items()
                for average in ("macro", "each")
            },
        }
    )
    training = module.training
    module.eval()
    total, n = 0.0, 0
    with torch.inference_mode():
        for inputs, targets in batches.epoch(0):
            outputs = _Remembered(module)
            total += float(loss(outputs, inputs, targets)) * len(targets)
            metrics.update(outputs.last.float(), targets)
            n += len(targets)
    module.train(training)
    values: dict[str, Tensor] = metrics.compute()
    return ClassificationScores(
        n=n,
        loss=total / n,
        accuracy=float(values["accuracy"]),
        precision=float(values["precision_macro"]),
        recall=float(values["recall_macro"]),
        f1=float(values["f1_macro"]),
        by_class={name: values[f"{name}_each"].tolist() for name in ("precision", "recall", "f1")},
        confusion=values["confusion"].tolist(),
    )


def validator(
    batches: Batches, loss: Loss, classes: int
) -> Callable[[nn.Module], dict[str, float]]:
    """For `fit`'s `validate`: loss and accuracy over `batches`."""

    def validate(module: nn.Module) -> dict[str, float]:
        scores = score_classifier(module, batches, loss, classes)
        return {"loss": scores.loss, "accuracy": scores.accuracy}

    return validate


class _Remembered(nn.Module):
    """Calls a network and keeps its last logits, so that loss and metrics share one pass."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._call = module

    def forward(self, **inputs: Tensor) -> Any:
        self.last = self._call(**inputs)
        return self.last
