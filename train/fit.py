"""The training loop: training, fine-tuning, distillation and QAT all go through `fit`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from .batches import Batches
from .execution import Execution, choose_execution
from .losses import Loss, classification_loss
from .settings import TrainSettings


@dataclass(frozen=True)
class Epoch:
    """One epoch: its mean training loss, the rate it ended with, its speed."""

    number: int
    loss: float
    lr: float
    seconds: float
    samples_per_s: float


@dataclass
class FitResult:
    """What a training gave; the module itself was trained in place and is in eval mode."""

    settings: TrainSettings
    execution: Execution
    epochs: list[Epoch] = field(default_factory=list)

    def summary(self) -> str:
        seconds = sum(epoch.seconds for epoch in self.epochs)
        return (
            f"{len(self.epochs)} epochs in {seconds:.1f} s ({self.execution}), "
            f"loss {self.epochs[-1].loss:.4f}"
        )


def fit(
    module: nn.Module,
    data: Batches,
    settings: TrainSettings,
    *,
    loss: Loss | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> FitResult:
    """Train `module` in place.

    Every epoch seeds torch anew from the run's seed and its own number, so that order,
    augmentation and dropout do not depend on what ran before. The caller's random state is left as
    it was.

    Args:
        data: see `train.batches`.
        loss: ``(module, inputs, targets) -> scalar``; by default the one that `settings` names.

    Raises:
        InputError: the loss is not finite.
    """
    loss = loss or classification_loss(settings)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)
        first = next(iter(data.epoch(settings.seed)))
        execution = choose_execution(module, loss, first, settings)
        execution.place_module(module)
        optimizer = make_optimizer(module, settings)
        result = FitResult(settings, execution)
        for number in range(settings.epochs):
            seed = settings.seed * 1_000_003 + number
            torch.default_generator.manual_seed(seed)
            module.train()
            start, total, done = time.perf_counter(), 0.0, 0
            for index, (inputs, targets) in enumerate(data.epoch(seed)):
                step = number * len(data) + index
                lr = settings.lr_at(step, len(data))
                for group in optimizer.param_groups:
                    group["lr"] = lr
                with execution.autocast():
                    value = loss(module, execution.place_inputs(inputs), targets)
                _check_finite(value, number, index, lr)
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                if settings.clip_norm:
                    nn.utils.clip_grad_norm_(module.parameters(), settings.clip_norm)
                optimizer.step()
                total += float(value.detach()) * len(targets)
                done += len(targets)
            seconds = time.perf_counter() - start
            epoch = Epoch(number + 1, total / done, lr, seconds, done / seconds)
            result.epochs.append(epoch)
            log(
                f"epoch {epoch.number}/{settings.epochs}: loss {epoch.loss:.4f}, "
                f"{epoch.samples_per_s:,.0f} samples/s"
            )
    module.eval()
    return result


def make_optimizer(module: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimizer that `settings` names, over the parameters that are to be trained."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    common: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, momentum=settings.momentum, nesterov=settings.nesterov, **common
        )
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, **common)


def _check_finite(value: torch.Tensor, epoch: int, step: int, lr: float) -> None:
    if not value.isfinite():
        raise InputError(
            f"the loss became {value.item()} in epoch {epoch + 1}, step {step + 1} (lr {lr:.3g}); "
            "use a lower --lr, --warmup or --clip, or look for bad samples"
        )
