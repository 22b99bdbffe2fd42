"""A user's task as training data: its samples decoded once, its own loss, its own score."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..artifact.content_hash import hash_file
from ..errors import EdgemlError, TaskError, one_line
from .decoded import DecodedSplits, by_name, decode_split, targets_array
from .evaluate import evaluate, read_samples
from .load_task import load_task
from .losses import Loss
from .settings import TrainSettings
from .task import SPLITS, Inputs, Task

EVALUATION_BATCH = 64


@dataclass(frozen=True)
class TaskScores:
    """What the task's `score` gives over a split.

    Attributes:
        n: samples.
        loss: mean of the task's loss.
        metrics: by name.
    """

    n: int
    loss: float
    metrics: dict[str, float]

    def headline(self) -> dict[str, float]:
        """Loss and metrics."""
        return {"loss": self.loss, **self.metrics}

    def line(self) -> str:
        """One clause for people."""
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        return f"{numbers} ({self.n:,} samples)"


@dataclass(frozen=True)
class TaskData(DecodedSplits):
    """Samples of a task that has a `loss`.

    Attributes:
        task: scores outputs.
        targets: by split, as the task yields them.
    """

    task: Any = None
    targets: Any = None

    tokenizer = classes = preprocess = None

    def loss(self, settings: TrainSettings) -> Loss:
        """The task's own, over ``(inputs, targets)`` of a batch."""
        return task_loss(self.task)

    def score(self, module: nn.Module, split: str, loss: Loss) -> TaskScores:
        """The task's metrics over a split, by the code that scores engines, and its mean loss."""
        from ..runtime.engine import EngineOptions
        from ..runtime.torch_engine import TorchEngine

        example = {name: array[None] for name, array in self.sample().items()}
        total, n = 0.0, 0
        module.eval()
        with torch.inference_mode():
            for inputs, targets in self.batches(split, EVALUATION_BATCH).epoch(0):
                total, n = (
                    total + float(loss(module, inputs, targets)) * len(targets),
                    n + len(targets),
                )
        engine = TorchEngine(module, example, None, EngineOptions(batch=None))
        found = evaluate(
            {"torch": engine}, _Decoded(self), split, batch=EVALUATION_BATCH, reference_id="torch"
        )
        return TaskScores(n, total / n, found.metrics("torch"))

    def try_out(self, module: nn.Module) -> None:
        """Run loss and score once, so that their slips are told before an epoch was spent.

        Raises:
            TaskError: one of them raises, or gives no number.
        """
        loss = task_loss(self.task)
        module.eval()  # nothing counts, nothing is dropped
        inputs, targets = next(iter(self.batches("train", 2).epoch(0)))
        loss(module, inputs, targets)
        self.validate(module, loss)

    def validate(self, module: nn.Module, loss: Loss) -> dict[str, float]:
        """Loss and metrics over the validation split, for `fit`."""
        return self.score(module, "validation", loss).headline()

    def write(self, root: Path) -> None:
        """Nothing: the task makes the network's inputs itself."""

    def facts_in(self, output: Path) -> dict[str, Any]:
        return self.facts


class _Decoded:
    """The task with its decoded samples in place of its own, which may be slow to make."""

    def __init__(self, data: TaskData) -> None:
        self._data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data.task, name)

    def samples(self, split: str) -> Iterator[tuple[Inputs, Any]]:
        arrays = self._data.arrays[split][0]
        for index, target in enumerate(self._data.targets[split]):
            yield by_name(arrays, index), target


def open_task_data(reference: str, folder: Path | None) -> TaskData:
    """Load a task and decode its three splits.

    Args:
        reference: ``file.py:NAME``; naming the file runs it.
        folder: for arrays that are too large for memory.

    Raises:
        TaskError: it breaks the contract, or has no `loss`.
        DataError: a split is empty, or its samples differ in shape.
    """
    task = load_task(reference)
    if not callable(getattr(task, "loss", None)):
        raise TaskError(
            f"{reference} has no loss(model, batch, teacher=None), which training minimises; "
            "see docs/tasks.md"
        )
    arrays, targets = {}, {}
    for split in SPLITS:
        # Counted first, so that large samples go into a file and not through memory twice.
        count = sum(1 for _ in read_samples(task, split, None))
        decoded, targets[split] = decode_split(task, split, count, folder)
        arrays[split] = decoded, targets_array(targets[split])
    file = reference.rpartition(":")[0]
    facts = {"source": reference, "task_sha256": hash_file(Path(file))}
    return TaskData(
        source=reference,
        arrays=arrays,
        fingerprint=_fingerprint(arrays, facts["task_sha256"]),
        facts={**facts, "sizes": {split: len(found) for split, found in targets.items()}},
        task=task,
        targets=targets,
    )


def task_loss(task: Task) -> Loss:
    """The task's `loss` as the loop calls it, its slips told as the task's.

    The task is given the module and ``(inputs, targets)``: ``{input name: tensor [batch, …]}``, and
    a tensor ``[batch, …]`` where all targets are numbers or arrays of one shape, else a list.
    """

    def loss(module: nn.Module, inputs: dict[str, Tensor], targets: Any) -> Tensor:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                value = task.loss(module, (inputs, targets))
        except EdgemlError:
            raise
        except Exception as e:
            raise TaskError(f"the task's loss raises {type(e).__name__}: {one_line(e)}") from e
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
            raise TaskError(
                f"the task's loss gives {type(value).__name__}{shape}; it must give a scalar tensor"
            )
        if torch.is_grad_enabled() and not value.requires_grad:
            raise TaskError("the task's loss does not depend on the model: it has no gradient")
        return value

    return loss


def _fingerprint(arrays: dict[str, tuple[dict[str, np.ndarray], Any]], code: str) -> str:
    digest = hashlib.sha256(code.encode())
    for split, (inputs, targets) in arrays.items():
        for name, array in inputs.items():
            digest.update(f"{split}.{name}:{array.dtype}{array.shape}".encode())
            for row in array:
                digest.update(np.ascontiguousarray(row))
        for target in targets:
            is_array = isinstance(target, np.ndarray)
            digest.update(target.tobytes() if is_array else repr(target).encode())
    return digest.hexdigest()
