"""A task's samples decoded once into arrays, so that epochs cost no decoding."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .batches import ArrayBatches, Augment
from .evaluate import read_samples
from .task import Inputs, Task

# Beyond this share of the machine's memory an array is a memory-mapped file.
IN_MEMORY_SHARE = 0.25


@dataclass(frozen=True)
class DecodedSplits:
    """Train, validation and test in arrays.

    Attributes:
        source: words that open the same splits again (``--data`` or ``--task``).
        arrays: by split, ``{input: [n, …]}`` as stored (uint8 pixels for images) and ``[n]`` targets.
        fingerprint: stands for the content of all splits.
        facts: for the manifest.
        prepare: turns a batch of the stored first input into what the network takes.
    """

    source: str
    arrays: dict[str, tuple[dict[str, np.ndarray], Any]]
    fingerprint: str
    facts: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    prepare: Callable[[Tensor], Tensor] | None = None

    @property
    def size_bytes(self) -> int:
        """Of all decoded samples."""
        return sum(x.nbytes for inputs, _ in self.arrays.values() for x in inputs.values())

    def batches(self, split: str, batch: int, augment: Sequence[str] = ()) -> ArrayBatches:
        """Batches of a split, shuffled for training only."""
        inputs, targets = self.arrays[split]
        return ArrayBatches(
            inputs,
            targets,
            batch,
            shuffle=split == "train",
            prepare=self.prepare,
            augment=self.augmentation(augment),
        )

    def augmentation(self, names: Sequence[str]) -> Augment | None:
        """What `names` stand for, for this kind of data.

        Raises:
            DataError: it has none.
        """
        if names:
            raise DataError(f"--augment {names[0]} is for images of --data")
        return None

    def sample(self) -> Inputs:
        """One sample as the network takes it, without the batch axis."""
        found = {}
        for index, (name, array) in enumerate(self.arrays["train"][0].items()):
            stored = torch.from_numpy(np.array(array[:1]))
            ready = self.prepare(stored) if self.prepare and index == 0 else stored
            found[name] = np.ascontiguousarray(ready[0].numpy())
        return found

    def named(self, names: Sequence[str]) -> DecodedSplits:
        """The same for a network with inputs `names`; a single input takes the network's word.

        Raises:
            DataError: they do not fit.
        """
        own = list(self.arrays["train"][0])
        if set(names) == set(own):
            return self
        if len(names) != 1 or len(own) != 1:
            raise DataError(
                f"{self.source} gives {', '.join(own)}; the network takes {', '.join(names)}"
            )
        arrays = {s: ({names[0]: x[own[0]]}, y) for s, (x, y) in self.arrays.items()}
        return replace(self, arrays=arrays)


def decode_split(
    task: Task, split: str, expected: int, folder: Path | None = None
) -> tuple[dict[str, np.ndarray], list[Any]]:
    """All samples of a split.

    Args:
        expected: at most so many samples.
        folder: where memory-mapped files go when an array is too large for memory.

    Returns:
        ``{input: [n, …]}`` as the task gives them, and the ``n`` targets.

    Raises:
        DataError: the split is empty, or samples differ in their inputs or shapes.
    """
    arrays: dict[str, np.ndarray] = {}
    targets: list[Any] = []
    for inputs, target in read_samples(task, split, expected):
        if not arrays:
            arrays = {n: _room(expected, a, f"{split}-{n}", folder) for n, a in inputs.items()}
        if inputs.keys() != arrays.keys():
            raise DataError(
                f"{split} samples differ in their inputs ({', '.join(arrays)}; {', '.join(inputs)})"
            )
        for name, array in arrays.items():
            sample = inputs[name]
            if sample.shape != array.shape[1:]:
                shapes = " and ".join(
                    "×".join(map(str, s)) for s in (array.shape[1:], sample.shape)
                )
                raise DataError(
                    f"{split} samples differ in shape ({shapes}); pad them, or for images: "
                    "--resize and --crop"
                )
            array[len(targets)] = sample
        targets.append(target)
    if not targets:
        raise DataError(f"there are no {split} samples")
    return {name: array[: len(targets)] for name, array in arrays.items()}, targets


def targets_array(targets: Sequence[Any]) -> Any:
    """``[n, …]`` where all targets are numbers or arrays of one shape, else the list as it is."""
    if all(isinstance(t, int | float | bool | np.number | np.ndarray) for t in targets):
        arrays = [np.asarray(t) for t in targets]
        if len({a.shape for a in arrays}) == 1 and all(a.dtype.kind in "fiub" for a in arrays):
            array = np.stack(arrays)
            return array.astype(np.float32) if array.dtype == np.float64 else array
    return list(targets)


def by_name(arrays: Mapping[str, np.ndarray], index: int) -> Inputs:
    """One sample of stored arrays."""
    return {name: array[index] for name, array in arrays.items()}


def _room(n: int, sample: np.ndarray, name: str, folder: Path | None) -> np.ndarray:
    shape = (n, *sample.shape)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if folder is not None and n * sample.nbytes > IN_MEMORY_SHARE * memory:
        return np.memmap(folder / f"decoded-{name}.bin", sample.dtype, "w+", shape=shape)
    return np.empty(shape, sample.dtype)
