"""The teacher's outputs on the training samples, computed once and stored in the stage cache.

A teacher's forward pass is about a third of a distillation step's work. Where every epoch sees the same
inputs (no augmentation) and only the outputs are learnt from (no features), it is done once.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..artifact.machine_lock import machine_lock
from ..train.batches import ArrayBatches, Batches
from ..train.checkpoint import weights_of
from .distil import STORED
from .feature_distil import first_output
from .stages import Stages

DTYPE = "float32"
FILE = "outputs.npy"
# Of all samples together: maps and sequences of a large vocabulary are more, and are computed anew.
MOST_BYTES = 2**29


def with_stored_logits(batches: Batches, teacher: nn.Module, stages: Stages) -> Batches:
    """`batches` whose inputs hold the teacher's outputs, too, for `distillation_loss`.

    They are keyed by the samples' and the weights' content, and by the answers to one batch, which stand
    for code, preprocessing and the CPU's kernels.

    Args:
        teacher: in eval mode.

    Returns:
        The batches as they are where the outputs would not be the same in every epoch, are larger than
        `MOST_BYTES`, or do not begin with the batch axis; why is logged.
    """
    if not isinstance(batches, ArrayBatches) or batches.augmented:
        stages.log("the teacher's outputs are computed in every epoch: samples are augmented")
        return batches
    inputs, _ = next(iter(batches.in_order().epoch(0)))
    first = _answers(teacher, inputs)
    count = len(next(iter(inputs.values())))
    numbers = first.numel() // max(1, len(first)) if first.dim() else 0
    if not numbers or len(first) != count or 4 * numbers * batches.samples > MOST_BYTES:
        stages.log("the teacher's outputs are computed in every epoch: they are too large to store")
        return batches
    key = {
        "samples": batches.content_hash(),
        "teacher": _hash(weights_of(teacher)),
        "first": _hash({"first": first}),
        "dtype": DTYPE,
        "torch": version("torch"),
    }

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
