"""One network out of several trainings of it, by the mean of their weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ModelError
from .weights import read_safetensors, write_safetensors

if TYPE_CHECKING:
    import torch


def average_weights(files: Sequence[Path], out: Path) -> None:
    """Write the mean of the weights of several trainings that began with the same ones.

    The mean of fine-tuned networks is often better than each, at the cost of one ("model soups",
    Wortsman et al. 2022, arXiv:2203.05482). What BatchNorm counted does not hold for it: train it
    for an epoch at a low rate, which also shows on validation whether the mean was worth it.

    Args:
        files: ``.safetensors`` files with the same names, shapes and types; at least two. Tensors
            that are not floating point are those of the first.
        out: a ``.safetensors`` file that does not exist.

    Raises:
        ModelError: a file cannot be read, they do not fit each other, or `out` exists.
    """
    if len(files) < 2:
        raise ModelError("a mean of weights needs two files at least")
    if Path(out).exists():
        raise ModelError(f"{out} exists; name another file")
    first = read_safetensors(Path(files[0]))
    mean = {name: _wide(tensor) for name, tensor in first.items()}
    for file in files[1:]:
        other = read_safetensors(Path(file))
        for name in sorted(first.keys() ^ other.keys()):
            raise ModelError(f"{name} is in only one of {files[0]} and {file}")
        for name, tensor in other.items():
            if tensor.shape != first[name].shape or tensor.dtype != first[name].dtype:
                raise ModelError(f"{name} has another shape or type in {file} than in {files[0]}")
            if tensor.is_floating_point():
                mean[name] += tensor.double()
    averaged = {
        name: (mean[name] / len(files)).to(tensor.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in first.items()
    }
    write_safetensors(averaged, Path(out))


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
