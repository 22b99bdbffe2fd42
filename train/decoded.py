"""A task's samples decoded once into one array, so that epochs cost no decoding."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .task import Task

# Beyond this share of the machine's memory the array is a memory-mapped file.
IN_MEMORY_SHARE = 0.25


def decode_split(
    task: Task, split: str, input_name: str, expected: int, folder: Path | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """All samples of a split.

    Args:
        expected: at most so many samples.
        folder: where a memory-mapped file goes when the array is too large for memory.

    Returns:
        ``[n, …]`` of the input as the task gives it, and int64 ``[n]`` targets.

    Raises:
        DataError: the split is empty, or samples differ in shape.
    """
    array: np.ndarray | None = None
    targets: list[Any] = []
    for inputs, target in task.samples(split):
        sample = inputs[input_name]
        if array is None:
            array = _room(expected, sample, split, folder)
        if sample.shape != array.shape[1:]:
            shapes = f"{'×'.join(map(str, array.shape[1:]))} and {'×'.join(map(str, sample.shape))}"
            raise DataError(
                f"{split} samples differ in shape ({shapes}); --resize and --crop make them equal"
            )
        array[len(targets)] = sample
        targets.append(target)
    if array is None:
        raise DataError(f"there are no {split} samples")
    return array[: len(targets)], np.asarray(targets, np.int64)


def _room(n: int, sample: np.ndarray, split: str, folder: Path | None) -> np.ndarray:
    shape = (n, *sample.shape)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if folder is not None and n * sample.nbytes > IN_MEMORY_SHARE * memory:
        return np.memmap(folder / f"decoded-{split}.bin", sample.dtype, "w+", shape=shape)
    return np.empty(shape, sample.dtype)
