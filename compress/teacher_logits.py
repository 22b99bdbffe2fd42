"""The teacher's outputs on the training samples, computed once and stored in the stage cache.

A teacher's forward pass is a third of a distillation step's work, and more where the student is small.
Where only the outputs are learnt from (no features), it is done once for all epochs, or, of augmented
samples, once for each epoch's own: rounds, budgets and seeds of the search that train on the same epoch
take what the first one stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..artifact.machine_lock import machine_lock
from ..train.batches import ArrayBatches, Batch, Batches
from ..train.checkpoint import weights_of
from .distil import STORED
from .feature_distil import first_output
from .stages import Stages

DTYPE = "float32"
FILE = "outputs.npy"
# Of all samples together: maps and sequences of a large vocabulary are more, and are computed anew.
MOST_BYTES = 2**29


def with_stored_logits(
    batches: Batches, teacher: nn.Module, epochs: int, stages: Stages
) -> Batches:
    """`batches` whose inputs hold the teacher's outputs, too, for `distillation_loss`.

    They are keyed by the samples' and the weights' content, and by the answers to one batch, which stand
    for code, preprocessing and the CPU's kernels; of augmented samples also by the epoch's seed and its
    first batch, which stands for the augmentation.

    Args:
        teacher: in eval mode.
        epochs: how many will be asked for.

    Returns:
        The batches as they are where the outputs are not those of arrays, are larger than `MOST_BYTES`,
        or do not begin with the batch axis; why is logged.
    """
    if not isinstance(batches, ArrayBatches):
        stages.log("the teacher's outputs are computed in every epoch: samples are no arrays")
        return batches
    inputs, _ = next(iter(batches.in_order().epoch(0)))
    first = _answers(teacher, inputs)
    count = len(next(iter(inputs.values())))
    numbers = first.numel() // max(1, len(first)) if first.dim() else 0
    size = 4 * numbers * batches.samples * (epochs if batches.augmented else 1)
    if not numbers or len(first) != count or size > MOST_BYTES:
        stages.log("the teacher's outputs are computed in every epoch: they are too large to store")
        return batches
    key = {
        "samples": batches.content_hash(),
        "teacher": _hash(weights_of(teacher)),
        "first": _hash({"first": first}),
        "dtype": DTYPE,
        "torch": version("torch"),
    }
    if batches.augmented:
        stages.log("the teacher's outputs are stored for each epoch's augmented samples")
        return _TaughtEpochs(batches, teacher, key, stages.quiet())

    def make(directory: Path) -> None:
        with machine_lock("the teacher's outputs", stages.log, shared=True) as hold:
            found = []
            for batch, _ in batches.in_order().epoch(0):
                found.append(_answers(teacher, batch).numpy())
                hold.pause()
        np.save(directory / FILE, np.concatenate(found), allow_pickle=False)

    line = f"the teacher's outputs on {batches.samples:,} samples, stored in {DTYPE}"
    folder = stages.run("teacher-logits", key, line, make)
    return batches.with_input(STORED, np.load(folder / FILE, allow_pickle=False))


class _TaughtEpochs:
    """Batches whose teacher is asked as they are taken, unless the same epoch was taken whole before."""

    def __init__(
        self, batches: ArrayBatches, teacher: nn.Module, key: dict[str, object], stages: Stages
    ) -> None:
        self._batches, self._teacher, self._key, self._stages = batches, teacher, key, stages
        self.samples = batches.samples

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, seed: int) -> Iterator[Batch]:
        inputs, _ = next(iter(self._batches.epoch(seed)))
        key = {**self._key, "seed": seed, "begins": _hash(inputs), "batch": self._batches.batch}
        folder = self._stages.find("teacher-epoch", key)
        stored = None if folder is None else np.load(folder / FILE, allow_pickle=False)
        found: list[np.ndarray] = []
        begin = 0
        for inputs, targets in self._batches.epoch(seed):
            if stored is None:
                answers = _answers(self._teacher, inputs)
                found.append(answers.numpy())
            else:
                rows = len(next(iter(inputs.values())))
                answers = torch.from_numpy(stored[begin : begin + rows])
                begin += rows
            yield {**inputs, STORED: answers}, targets
        if stored is None:
            whole = np.concatenate(found)
            self._stages.run(
                "teacher-epoch",
                key,
                "the teacher's outputs of an epoch",
                lambda directory: np.save(directory / FILE, whole, allow_pickle=False),
            )


def _answers(teacher: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return first_output(teacher(**inputs)).float().cpu()


def _hash(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        array = tensor.cpu().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
