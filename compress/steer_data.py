"""What a pruned network is fine-tuned on: the data of the run, as batches with the task's loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from ..artifact.recipe import FinetuneStep
from ..errors import DataError, InputError, TaskError, one_line
from ..train.batches import ArrayBatches, Batches
from ..train.data_source import open_source
from ..train.decoded import decode_split, targets_array
from ..train.evaluate import read_samples
from ..train.losses import Loss
from ..train.settings import TrainSettings
from ..train.task import Inputs
from ..train.task_data import task_loss
from ..train.training_data import open_training_data
from ..train.training_run import TrainingRequest
from .feature_distil import blocks_of
from .job import Job
from .plan_training import trained_like
from .sparsity_2to4 import refuse_uncovered

# Samples of a task, or without labels, that are held in memory.
MOST_SAMPLES = 50_000
# In a batch whose size neither the recipe nor a training says: 32 images of 224 × 224. What a network
# keeps of them for the gradient is tens of times as much.
MOST_INPUT_NUMBERS = 32 * 3 * 224 * 224
# The least highest rate, for 128 samples a step of SGD with momentum, at which a network that lost parts
# is trained: that of a last small training of the whole one says nothing of it. Renda et al. 2020 (section 4)
# find that pruned networks want the first training's rates back.
PRUNED_SGD_LR = 0.02


@dataclass(frozen=True)
class FinetuneData:
    """Batches and how to learn from them.

    Attributes:
        batches: of the train split; without labels of the calibration samples.
        labels: whether targets are there; without them the teacher alone is learnt from.
        task_loss: the task's own loss; None is cross-entropy.
    """

    batches: Batches
    labels: bool
    task_loss: Loss | None


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
    if open_source(recipe.data or "").labels is None:
        return _without_labels(opened.calibration(), settings)
    request = TrainingRequest(
        model=recipe.model,
        data=recipe.data,
        classes=recipe.classes,
        preprocess=opened.preprocess.model_dump(mode="json") if opened.preprocess else None,
        on_bad_sample=recipe.on_bad_sample,
        settings=settings,
    )
    data = open_training_data(request, None, names).named(names)
    batch = min(settings.batch, len(data.arrays["train"][1]))
    return FinetuneData(data.batches("train", batch, augment), True, None)


def finetune_settings(
    job: Job, step: FinetuneStep, pruned: bool = False
) -> tuple[TrainSettings, tuple[str, ...]]:
    """Settings and augmentation: as the step says, else as the network was trained, at half the
    rate; else plain ones.

    Args:
        pruned: parts of the network are removed; by SGD with momentum it is then trained at no less
            than `PRUNED_SGD_LR`, unless the step says a rate.

    Raises:
        InputError: features are to be matched and the network has no block; or weights are to be 2:4
            and no layer can be.
    """
    if step.sparse_2to4:
        refuse_uncovered(job.module)
    if step.features and not blocks_of(job.module):
        raise InputError(
            f"step finetune: features: true matches blocks (modules with weights in a Sequential or "
            f"ModuleList), and {type(job.module).__name__} has none; leave it out"
        )
    trained = trained_like(job.recipe.model)
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
    if step.optimizer not in (None, values.get("optimizer")):
        values.pop("lr", None)  # the rate of one optimizer says nothing of another's
    values["lr"] = values.get("lr", 1e-3) / 2
    if "batch" not in values:
        each = sum(np.asarray(array).size for array in job.sample.values())
        usual = TrainSettings.model_fields["batch"].default
        values["batch"] = max(1, min(usual, MOST_INPUT_NUMBERS // max(1, each)))
    values |= {
        name: getattr(step, name)
        for name in ("batch", "optimizer")
        if getattr(step, name) is not None
    }
    momentum = values.get("momentum", TrainSettings.model_fields["momentum"].default)
    if pruned and values.get("optimizer") == "sgd" and momentum:
        values["lr"] = max(values["lr"], PRUNED_SGD_LR * values["batch"] / 128)
    if step.lr is not None:
        values["lr"] = step.lr
    settings = TrainSettings(
        **{**values, "epochs": max(1, step.epochs), "schedule": "cosine", "seed": job.recipe.seed},
        threads=job.recipe.threads,
    )
    augment = trained.get("augment", ()) if step.augment is None else step.augment
    return settings, tuple(augment)


def _of_task(task: Any, reference: str, settings: TrainSettings) -> FinetuneData:
    if not callable(getattr(task, "loss", None)):
        raise TaskError(
            f"{reference} has no loss(model, batch, teacher=None), which pruning and fine-tuning "
            "need; add one (docs/tasks.md), or leave out --latency, --max-size, --epochs"
        )
    count = sum(1 for _ in read_samples(task, "train", MOST_SAMPLES))
    arrays, targets = decode_split(task, "train", count)
    batches = ArrayBatches(arrays, targets_array(targets), min(settings.batch, count))
    return FinetuneData(batches, True, task_loss(task))


def _without_labels(samples: Iterable[Inputs], settings: TrainSettings) -> FinetuneData:
    inputs: dict[str, list[np.ndarray]] = {}
    for sample in islice(samples, MOST_SAMPLES):
        for name, array in sample.items():
            inputs.setdefault(name, []).append(np.asarray(array))
    if not inputs:
        raise DataError("there are no samples to fine-tune on")
    try:
        arrays = {name: np.stack(found) for name, found in inputs.items()}
    except ValueError as e:
        raise DataError(f"samples of different shapes cannot be batched: {one_line(e)}") from e
    count = len(next(iter(arrays.values())))
    # The teacher's answers stand for labels; the numbers here are not looked at.
    batches = ArrayBatches(arrays, np.zeros(count, np.int64), min(settings.batch, count))
    return FinetuneData(batches, False, None)
