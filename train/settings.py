"""How a network is trained: everything the loop depends on besides the network and the data."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import InputError, nearest


class TrainSettings(BaseModel):
    """Written into a run's directory; a resumed run must have the same.

    Attributes:
        batch: samples a step, over all processes together.
        lr: the highest learning rate of the schedule.
        schedule: ``cosine`` falls to zero at the end, ``step`` multiplies by `lr_drop` after each
            of `lr_drop_epochs`, ``constant`` stays.
        warmup_epochs: over which the rate rises linearly from zero; a fraction is allowed.
        clip_norm: the gradient's L2 norm is cut to it; None leaves it.
        loss: ``mse`` is against one-hot targets, over logits as they come.
        label_smoothing: of cross-entropy, in [0, 1).
        patience: stop after so many epochs without a better validation loss, and keep the best
            weights; None trains to the end and keeps the last.
        precision: ``auto`` takes bf16 autocast where it is measured faster in the first steps.
        channels_last: the memory format of 2-D convolutions; None takes the faster.
        threads: None leaves torch's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=10, ge=1)
    batch: int = Field(default=128, ge=1)
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    lr: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    lr_drop: float = Field(default=0.1, gt=0, le=1)
    lr_drop_epochs: tuple[int, ...] = ()
    warmup_epochs: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    clip_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    loss: Literal["cross-entropy", "mse"] = "cross-entropy"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    patience: int | None = Field(default=None, ge=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    channels_last: bool | None = None
    threads: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of a step, counted from 0 over the whole training.

        A function of the step alone, so that a resumed run has nothing to restore.

        >>> settings = TrainSettings(epochs=2, lr=1.0, warmup_epochs=1)
        >>> [round(settings.lr_at(step, 2), 3) for step in range(4)]
        [0.5, 1.0, 1.0, 0.5]
        """
        import math

        warmup = self.warmup_epochs * steps_per_epoch
        if step < warmup:
            return self.lr * min(1.0, (step + 1) / warmup)
        if self.schedule == "cosine":
            done = (step - warmup) / max(1.0, self.epochs * steps_per_epoch - warmup)
            return self.lr * 0.5 * (1 + math.cos(math.pi * done))
        if self.schedule == "step":
            return self.lr * self.lr_drop ** sum(
                step >= epoch * steps_per_epoch for epoch in self.lr_drop_epochs
            )
        return self.lr


def build_settings(values: dict[str, Any], where: str = "options") -> TrainSettings:
    """`TrainSettings` from plain values, with one line for the first wrong one.

    Raises:
        InputError: an unknown key (the nearest is named), a wrong type or range, or a setting that
            would do nothing beside the others.
    """
    known = TrainSettings.model_fields
    for name in values:
        if name not in known:
            raise InputError(f"{where}: unknown setting {name!r}, {nearest(name, known)}")
    try:
        settings = TrainSettings(**values)
    except ValidationError as e:
        first = e.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{where}: {place}: {first['msg']}, got {first['input']!r}") from e
    if idle := _idle(values, settings):
        raise InputError(f"{where}: {idle}")
    return settings


def _idle(values: dict[str, Any], settings: TrainSettings) -> str | None:
    """Of the settings that were given, what would be passed over without a word."""
    if settings.schedule == "step" and not settings.lr_drop_epochs:
        return "the step schedule never drops; give --lr-drop-epochs, as in 80,120"
    if settings.schedule != "step" and (named := {"lr_drop", "lr_drop_epochs"} & values.keys()):
        return f"{min(named)} is of the step schedule; give --schedule step"
    if any(epoch < 1 for epoch in settings.lr_drop_epochs):
        return f"lr_drop_epochs {settings.lr_drop_epochs}: epochs are counted from 1"
    if settings.optimizer != "sgd" and (named := {"momentum", "nesterov"} & values.keys()):
        return f"{min(named)} is of sgd; give --optimizer sgd"
    if settings.nesterov and not settings.momentum:
        return "nesterov needs a momentum above 0"
    if settings.loss != "cross-entropy" and settings.label_smoothing:
        return "label_smoothing is of cross-entropy; leave it out for mse"
    return None
