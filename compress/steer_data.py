"""What a pruned network is fine-tuned on: the data of the run, as batches with the task's loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from ..artifact.recipe import FinetuneStep, Recipe
from ..errors import DataError, InputError, TaskError
from ..train.batches import Batch, Batches
from ..train.data_source import open_source
from ..train.losses import Loss
from ..train.settings import TrainSettings
from ..train.sources.cut import DEFAULT
from .job import Job
from .plan_training import trains

# Samples held in memory at once; images of a labelled source are held as bytes, and all of them.
MOST_SAMPLES = 50_000


@dataclass(frozen=True)
class FinetuneData:
    """Batches and how to learn from them.

    Attributes:
        batches: of the train split; without labels of the calibration samples, targets None.
        labels: whether targets are there; without them the teacher alone is learnt from.
        task_loss: the task's own loss; None is cross-entropy.
        sample: one batch of inputs, for tracing.
    """

    batches: Batches
    labels: bool
    task_loss: Loss | None

    def first(self, seed: int = 0) -> Batch:
        """A batch, for importances and to trace by."""
        return next(iter(self.batches.epoch(seed)))


def with_train_split(recipe: Recipe) -> Recipe:
    """The recipe with a train split in its data: a source without one is cut, and the words say so.

    What is trained on must be neither validated nor tested on.

    Raises:
        DataError: the source names splits, and no train split among them.
    """
    if recipe.data is None or not trains(recipe):
        return recipe
    source = open_source(recipe.data)
    if source.labels is None or (source.splits is not None and "train" in source.splits):
        return recipe
    if source.splits is not None and len(set(source.splits)) > 1:
        raise DataError(
            f"{recipe.data} has no train split, and pruning and distillation train; add one"
        )
    return recipe.model_copy(update={"data": f"cut:{DEFAULT}:{recipe.data}"})


def open_finetune_data(job: Job, settings: TrainSettings, augment: tuple[str, ...]) -> FinetuneData:
    """The train split of the run's data.

    Raises:
        DataError: there is none, or it cannot be augmented so.
        TaskError: the task has no `loss`, which a step that trains needs.
    """
    recipe, opened = job.recipe, job.opened
    if opened is None:
        raise InputError("a step that trains needs samples: --data or --task")
    names = [spec.name for spec in job.info.inputs]
    if recipe.task is not None:
        return _of_task(opened.task, recipe.task, settings)
    source = open_source(recipe.data or "")
    if source.labels is None:
        stream = islice(opened.calibration(), MOST_SAMPLES)
        return FinetuneData(_Stacked(((x, None) for x in stream), settings.batch), False, None)
    if source.kind == "image":
        return FinetuneData(_images(job, settings, augment, names[0]), True, None)
    if augment:
        raise DataError(f"augment {augment[0]} is for images")
    samples = opened.task.samples("train")
    return FinetuneData(_Stacked(islice(samples, MOST_SAMPLES), settings.batch), True, None)


def finetune_settings(job: Job, step: FinetuneStep) -> tuple[TrainSettings, tuple[str, ...]]:
    """Settings and augmentation: as the step says, else as the network was trained, at half the
    rate; else plain ones."""
    trained = _trained_like(job)
    was = trained.get("settings", {})
    values = {
        name: was[name]
        for name in (
            "batch",
            "optimizer",
            "lr",
            "momentum",
            "nesterov",
            "weight_decay",
            "clip_norm",
        )
        if was.get(name) is not None
    }
    values["lr"] = values.get("lr", 1e-3) / 2
    values |= {
        name: getattr(step, name)
        for name in ("batch", "optimizer", "lr")
        if getattr(step, name) is not None
    }
    settings = TrainSettings(
        **{**values, "epochs": max(1, step.epochs), "schedule": "cosine", "seed": job.recipe.seed},
        threads=job.recipe.threads,
    )
    augment = trained.get("augment", ()) if step.augment is None else step.augment
    return settings, tuple(augment)


def _trained_like(job: Job) -> dict[str, Any]:
    """The request that `edgeml train` kept in the model's bundle, or {}."""
    import json
    from pathlib import Path

    from ..artifact.bundle import MANIFEST

    file = Path(job.recipe.model) / MANIFEST
    if not file.is_file():
        return {}
    manifest = json.loads(file.read_text(encoding="utf-8"))
    recipe = manifest.get("recipe")
    return recipe if isinstance(recipe, dict) and "settings" in recipe else {}


def _images(job: Job, settings: TrainSettings, augment: tuple[str, ...], name: str) -> Batches:
    """Decoded once, kept as bytes, made ready batch by batch."""
    from ..train.training_data import open_training_data
    from ..train.training_run import TrainingRequest

    recipe = job.recipe
    preprocess = job.opened.preprocess.model_dump(mode="json") if job.opened.preprocess else None
    request = TrainingRequest(
        model=recipe.model,
        data=recipe.data or "",
        classes=recipe.classes,
        preprocess=preprocess,
        on_bad_sample=recipe.on_bad_sample,
        settings=settings,
    )
    data = open_training_data(request, None).named([name])
    return data.batches("train", settings.batch, augment)


def _of_task(task: Any, reference: str, settings: TrainSettings) -> FinetuneData:
    loss = getattr(task, "loss", None)
    if not callable(loss):
        raise TaskError(
            f"{reference} has no loss(model, batch, teacher=None), which pruning and fine-tuning "
            "need; add one (docs/tasks.md), or leave out --latency, --max-size, --epochs"
        )

    def task_loss(module: Any, inputs: dict[str, Any], targets: Any) -> Any:
        return loss(module, (inputs, targets))

    samples = islice(task.samples("train"), MOST_SAMPLES)
    return FinetuneData(_Stacked(samples, settings.batch), True, task_loss)


class _Stacked:
    """Batches of samples that a stream gives, held in memory.

    Inputs of one shape are stacked; targets are, too, where they are numbers or arrays of one
    shape, else they stay a list.
    """

    def __init__(self, samples: Iterable[tuple[dict[str, Any], Any]], batch: int) -> None:
        inputs: dict[str, list[np.ndarray]] = {}
        targets = []
        for sample, target in samples:
            for name, array in sample.items():
                inputs.setdefault(name, []).append(np.asarray(array))
            targets.append(target)
        if not targets:
            raise DataError("there are no samples to fine-tune on: the train split is empty")
        try:
            self._inputs = {n: torch.from_numpy(np.stack(arrays)) for n, arrays in inputs.items()}
        except ValueError as e:
            raise DataError(f"samples of different shapes cannot be batched: {e}") from e
        self._targets = _stack_targets(targets)
        self.samples, self.batch = len(targets), min(batch, len(targets))

    def __len__(self) -> int:
        return -(-self.samples // self.batch)

    def epoch(self, seed: int) -> Iterator[Batch]:
        order = torch.randperm(self.samples, generator=torch.Generator().manual_seed(seed))
        for start in range(0, self.samples, self.batch):
            rows = order[start : start + self.batch]
            inputs = {name: tensor[rows] for name, tensor in self._inputs.items()}
            if isinstance(self._targets, torch.Tensor):
                yield inputs, self._targets[rows]
            else:
                yield inputs, [self._targets[i] for i in rows.tolist()]


def _stack_targets(targets: list[Any]) -> Any:
    if targets[0] is None:
        return targets
    try:
        stacked = np.stack([np.asarray(t) for t in targets])
    except ValueError:
        return targets
    if stacked.dtype.kind not in "iufb":
        return targets
    return torch.from_numpy(stacked.astype(np.int64) if stacked.dtype.kind in "iu" else stacked)
