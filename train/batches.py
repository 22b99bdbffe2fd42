"""Arrays in memory, cut into batches of tensors; the order of an epoch follows from its seed."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError

Batch = tuple[dict[str, Tensor], Any]
Augment = Callable[[Tensor, torch.Generator], Tensor]
HASHED_ROWS = 1024


class Batches(Protocol):
    """What `fit` trains on. ``samples`` counts one epoch, ``len()`` its batches."""

    samples: int

    def __len__(self) -> int: ...

    def epoch(self, seed: int) -> Iterable[Batch]:
        """The batches of one epoch, ``({input name: [batch, …]}, targets)``; all its randomness
        comes from `seed`."""


class ArrayBatches:
    """Batches of arrays that fit into memory.

    Args:
        inputs: by the names of ``forward``'s parameters, ``[n, …]``.
        targets: ``[n]`` class numbers, ``[n, …]`` whatever the loss takes, or a list of anything.
        batch: samples a batch; the last one of an epoch may have fewer. A shuffled epoch leaves out
            a sample that would be alone in it (another one each epoch): BatchNorm refuses one row.
        shuffle: a new order each epoch; otherwise the arrays' own.
        augment: called with each batch of the first input and the epoch's generator.
        prepare: called with each batch of the first input, before `augment` (uint8 to float …).

    Raises:
        DataError: lengths differ, there are no samples, or the batch is larger than the data.
    """

    def __init__(
        self,
        inputs: Mapping[str, np.ndarray],
        targets: np.ndarray | list[Any],
        batch: int,
        *,
        shuffle: bool = True,
        augment: Augment | None = None,
        prepare: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.samples = len(targets)
        if not self.samples:
            raise DataError("there are no samples to train on")
        for name, array in inputs.items():
            if len(array) != self.samples:
                raise DataError(f"input {name!r} has {len(array)} samples, targets {self.samples}")
        if shuffle and batch > self.samples:
            raise DataError(f"--batch {batch} is larger than the data ({self.samples} samples)")
        self._inputs = {name: torch.from_numpy(np.asarray(a)) for name, a in inputs.items()}
        as_list = isinstance(targets, list)
        self._targets = targets if as_list else torch.from_numpy(np.asarray(targets))
        self.batch, self._shuffle = batch, shuffle
        self._augment, self._prepare = augment, prepare
        alone = shuffle and batch > 1 and self.samples > batch and self.samples % batch == 1
        self._samples_an_epoch = self.samples - alone

    def __len__(self) -> int:
        return -(-self._samples_an_epoch // self.batch)

    @property
    def augmented(self) -> bool:
        """Whether epochs differ in more than their order."""
        return self._augment is not None

    def in_order(self) -> ArrayBatches:
        """The same, every sample once, in the arrays' own order."""
        other = copy.copy(self)
        other._shuffle, other._samples_an_epoch = False, self.samples
        return other

    def with_input(self, name: str, array: np.ndarray) -> ArrayBatches:
        """The same with one more input, ``[n, …]``, after the others."""
        other = copy.copy(self)
        other._inputs = {**self._inputs, name: torch.from_numpy(array)}
        return other

    def content_hash(self) -> str:
        """sha256 of the inputs as they are stored, before they are prepared."""
        digest = hashlib.sha256()
        for name, tensor in self._inputs.items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            for rows in tensor.split(HASHED_ROWS):  # of a memory-mapped file no copy as a whole
                digest.update(np.ascontiguousarray(rows.numpy()))
        return digest.hexdigest()

    def epoch(self, seed: int) -> Iterator[Batch]:
        random = torch.Generator().manual_seed(seed)
        order = torch.randperm(self.samples, generator=random) if self._shuffle else None
        for start in range(0, self._samples_an_epoch, self.batch):
            stop = min(start + self.batch, self._samples_an_epoch)
            rows = slice(start, stop) if order is None else order[start:stop]
            inputs = {name: tensor[rows] for name, tensor in self._inputs.items()}
            first = next(iter(inputs))
            if self._prepare:
                inputs[first] = self._prepare(inputs[first])
            if self._augment:
                inputs[first] = self._augment(inputs[first], random)
            yield inputs, self._of(rows)

    def _of(self, rows: slice | Tensor) -> Any:
        if isinstance(self._targets, list) and isinstance(rows, Tensor):
            return [self._targets[row] for row in rows.tolist()]
        return self._targets[rows]


def shift_crop(pixels: int) -> Augment:
    """Every image moved by up to `pixels` in both axes, the border filled with its edge value.

    [N, C, H, W] -> the same shape.
    """

    def augment(images: Tensor, random: torch.Generator) -> Tensor:
        n, channels, height, width = images.shape
        padded = torch.nn.functional.pad(images, (pixels,) * 4, mode="replicate")
        moves = torch.randint(0, 2 * pixels + 1, (2, n, 1), generator=random)
        rows = moves[0] + torch.arange(height)
        columns = moves[1] + torch.arange(width)
        batch = torch.arange(n)[:, None, None, None]
        channel = torch.arange(channels)[None, :, None, None]
        return padded[batch, channel, rows[:, None, :, None], columns[:, None, None, :]]

    return augment


def flip(images: Tensor, random: torch.Generator) -> Tensor:
    """Every image mirrored left to right with probability one half. [N, C, H, W]."""
    mirrored = torch.rand(len(images), generator=random) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)
