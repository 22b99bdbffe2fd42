"""The training loop: training, fine-tuning, distillation and QAT all go through `fit`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from .batches import Batches
from .checkpoint import (
    Checkpoint,
    Epoch,
    Progress,
    optimizer_state,
    restore_optimizer,
    weights_of,
)
from .execution import Execution, choose_execution
from .losses import Loss, classification_loss
from .processes import FabricProcesses, OneProcess
from .settings import TrainSettings

# (epoch from 1, step from 1, steps an epoch, samples/s so far in this epoch, last loss)
OnStep = Callable[[int, int, int, float, float], None]


@dataclass(frozen=True)
class FitResult:
    """What a training gave; the module itself was trained in place and is in eval mode.

    Attributes:
        best_epoch: whose weights were kept by early stopping; None: the last epoch's.
        resumed_after: epochs that a checkpoint already held.
    """

    settings: TrainSettings
    execution: Execution
    epochs: list[Epoch]
    best_epoch: int | None = None
    resumed_after: int = 0

    def summary(self) -> str:
        """One line."""
        seconds = sum(epoch.seconds for epoch in self.epochs)
        kept = f", epoch {self.best_epoch} kept" if self.best_epoch else ""
        return (
            f"{len(self.epochs)} epochs in {seconds:.1f} s ({self.execution}), "
            f"loss {self.epochs[-1].loss:.4f}{kept}"
        )


def fit(
    module: nn.Module,
    data: Batches,
    settings: TrainSettings,
    *,
    loss: Loss | None = None,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    checkpoint: Checkpoint | None = None,
    processes: OneProcess | FabricProcesses | None = None,
    log: Callable[[str], None] = lambda line: None,
    on_step: OnStep | None = None,
) -> FitResult:
    """Train `module` in place.

    Every epoch seeds torch anew from the run's seed and its own number, so order, augmentation and
    dropout do not depend on what ran before, and a resumed run ends in the same weights bit for
    bit. The caller's random state is left as it was.

    Args:
        data: see `train.batches`.
        loss: ``(module, inputs, targets) -> scalar``; by default the one that `settings` names.
        validate: called after each epoch with the module in eval mode; returns ``loss`` (for early
            stopping) and any metrics.
        checkpoint: written after every epoch, and gone on from when it exists.

    Raises:
        InputError: the loss, a weight or a validation score is not finite (the checkpoint of the
            last good epoch stays), early stopping has nothing to watch, or the checkpoint is of
            another training.

    >>> import numpy as np
    >>> from edgeml.train.batches import ArrayBatches
    >>> x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
    >>> data = ArrayBatches({"input": x}, (x[:, 0] > 0).astype(np.int64), batch=16)
    >>> result = fit(nn.Linear(1, 2), data, TrainSettings(epochs=5, lr=0.5))
    >>> len(result.epochs), result.epochs[-1].loss < 0.2
    (5, True)
    """
    loss = _with_batchnorm_told(loss or classification_loss(settings))
    processes = processes or OneProcess()
    if settings.patience and validate is None:
        raise InputError("early stopping needs validation samples; leave out --patience")
    with _own_random_state_and_threads(settings):
        saved = checkpoint.load() if checkpoint else None
        if saved:
            progress, weights, momenta = saved
            module.load_state_dict(weights, strict=False)
        else:
            first = processes.share(next(iter(data.epoch(settings.seed))))
            chosen = choose_execution(module, loss, first, settings)
            progress = Progress(processes.first_says(chosen))
        execution, resumed_after = progress.execution, len(progress.epochs)
        torch.set_num_threads(execution.threads)
        execution.place_module(module)

        def optimizer_of(prepared: nn.Module) -> torch.optim.Optimizer:
            made = make_optimizer(prepared, settings)
            if saved:
                restore_optimizer(made, momenta)
            return made

        trained, optimizer = processes.setup(module, optimizer_of)
        if saved:
            log(f"going on after epoch {resumed_after}")

        for number in range(resumed_after, settings.epochs):
            if _ran_out_of_patience(progress, settings):
                log(f"no better validation loss for {settings.patience} epochs: stopped early")
                break
            seed = settings.seed * 1_000_003 + number
            torch.default_generator.manual_seed(seed)
            trained.train()
            start, total, done = time.perf_counter(), 0.0, 0
            for index, batch in enumerate(data.epoch(seed)):
                whole = len(batch[1])
                inputs, targets = processes.share(batch)
                lr = settings.lr_at(number * len(data) + index, len(data))
                for group in optimizer.param_groups:
                    group["lr"] = lr
                with execution.autocast():
                    value = loss(trained, execution.place_inputs(inputs), targets)
                last = float(value.detach())
                _check_finite(last, number, index, lr, checkpoint if progress.epochs else None)
                optimizer.zero_grad(set_to_none=True)
                processes.backward(value, len(targets), whole)
                if settings.clip_norm:
                    processes.clip(trained, optimizer, settings.clip_norm)
                optimizer.step()
                total, done = total + last * len(targets), done + len(targets)
                if on_step:
                    speed = done * processes.world / (time.perf_counter() - start)
                    on_step(number + 1, index + 1, len(data), speed, last)
            seconds = time.perf_counter() - start
            total, count = processes.sums(total, done)

            processes.collect(trained, module)
            _check_weights(module, number, checkpoint if progress.epochs else None)
            module.eval()
            scores = validate(module) if validate else {}
            _check_validation(scores, number, checkpoint if progress.epochs else None)
            epoch = Epoch(number + 1, total / count, lr, seconds, count / seconds, scores)
            improved = settings.patience and scores["loss"] < progress.best_loss()
            progress.epochs.append(epoch)
            if improved:
                progress.best_epoch, progress.best_weights = epoch.number, weights_of(module)
            if checkpoint:
                state = optimizer_state(optimizer)  # put together by all processes
                if processes.rank == 0:
                    checkpoint.save(module, state, progress)
            log(_line(epoch, settings))

        if progress.best_epoch:
            module.load_state_dict(progress.best_weights, strict=False)
    module.eval()
    return FitResult(settings, execution, progress.epochs, progress.best_epoch, resumed_after)


def make_optimizer(module: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimizer that `settings` names, over the parameters that are to be trained.

    Raises:
        InputError: there are none.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise InputError(f"{type(module).__name__} has no parameter to train")
    common: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, momentum=settings.momentum, nesterov=settings.nesterov, **common
        )
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, **common)


@contextmanager
def _own_random_state_and_threads(settings: TrainSettings) -> Iterator[None]:
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _with_batchnorm_told(loss: Loss) -> Loss:
    def told(module: nn.Module, inputs: Any, targets: Any) -> torch.Tensor:
        try:
            return loss(module, inputs, targets)
        except ValueError as e:
            if "Expected more than 1 value per channel" not in str(e):
                raise
            raise InputError(
                "BatchNorm was given a single row, of which it knows no variance; use a larger "
                "--batch, or another number of samples where the last batch holds one a process"
            ) from e

    return told


def _ran_out_of_patience(progress: Progress, settings: TrainSettings) -> bool:
    if not settings.patience or progress.best_epoch is None:
        return False
    return len(progress.epochs) - progress.best_epoch >= settings.patience


def _check_finite(
    value: float, epoch: int, step: int, lr: float, checkpoint: Checkpoint | None
) -> None:
    if value - value == 0:  # neither NaN nor infinite
        return
    raise InputError(
        f"the loss became {value} in epoch {epoch + 1}, step {step + 1} (lr {lr:.3g}); "
        + _instead(epoch, checkpoint)
    )


def _check_weights(module: nn.Module, epoch: int, checkpoint: Checkpoint | None) -> None:
    """An epoch's last step is followed by no loss that would show what it did."""
    for name, parameter in module.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise InputError(
                f"{name} became NaN or infinite in epoch {epoch + 1}; {_instead(epoch, checkpoint)}"
            )


def _check_validation(scores: dict[str, float], epoch: int, checkpoint: Checkpoint | None) -> None:
    """A step's loss is in train mode: what BatchNorm's running statistics became shows only here."""
    for name, value in scores.items():
        if value - value != 0:
            raise InputError(
                f"the validation {name} became {value} in epoch {epoch + 1}; "
                + _instead(epoch, checkpoint)
            )


def _instead(epoch: int, checkpoint: Checkpoint | None) -> str:
    kept = f"; epoch {epoch} is kept in {checkpoint.path}" if checkpoint else ""
    return f"use a lower --lr, --warmup or --clip, or look for bad samples{kept}"


def _line(epoch: Epoch, settings: TrainSettings) -> str:
    scores = "".join(f", validation {name} {v:.4f}" for name, v in epoch.validation.items())
    return (
        f"epoch {epoch.number}/{settings.epochs}: loss {epoch.loss:.4f}{scores}, "
        f"{epoch.samples_per_s:,.0f} samples/s"
    )
