"""Arrays in an ``.npz``: ``x`` [n, …] as the network takes them, ``y`` [n] labels if there are any."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError, one_line
from ..data_source import SPLIT_WORDS, DataSource
from .imagefolder import label_indices, sorted_names


def npz(place: str, classes: list[str] | None = None) -> DataSource:
    """Samples of ``x``; labels of ``y`` (whole numbers or text), splits of ``split``.

    Raises:
        DataError: the file is missing or damaged, holds Python objects, or its arrays do not fit.
    """
    path = Path(place)
    arrays = _read(path)
    if "x" not in arrays:
        have = ", ".join(sorted(arrays)) or "none"
        raise DataError(f"{path} has no array x (arrays: {have}); it takes x [n, …] and y [n]")
    splits = None
    if "split" in arrays:
        words = [str(word).lower() for word in arrays["split"].tolist()]
        if bad := sorted(set(words) - set(SPLIT_WORDS)):
            raise DataError(f"{path}: unknown split {bad[0]!r}; known: train, validation, test")
        splits = [SPLIT_WORDS[word] for word in words]
    return from_arrays(f"npz:{place}", arrays["x"], arrays.get("y"), splits, classes)


def from_arrays(
    name: str,
    x: np.ndarray,
    y: np.ndarray | None,
    splits: list[str] | None = None,
    classes: list[str] | None = None,
) -> DataSource:
    """A source of arrays in memory.

    Args:
        x: ``[n, …]``, a sample a row.
        y: ``[n]`` whole numbers or text, or None.
    """
    if x.ndim < 2 or x.dtype.kind not in "fiub":
        raise DataError(f"{name}: x is {x.dtype} of shape {x.shape}; it takes numbers [n, …]")
    labels, unknown = (None, {}) if y is None else _labels(name, y, len(x), classes)
    if y is not None and y.dtype.kind in "US" and classes is None:
        classes = sorted_names(set(map(str, y.tolist())))
    if splits is not None and len(splits) != len(x):
        raise DataError(f"{name}: {len(splits)} splits for {len(x)} samples")
    return DataSource(
        name=name,
        kind="array",
        read=x.__getitem__,
        places=[f"x[{i}]" for i in range(len(x))],
        labels=labels,
        unknown=unknown,
        splits=splits,
        classes=classes,
    )


def _labels(
    name: str, y: np.ndarray, n: int, classes: list[str] | None
) -> tuple[np.ndarray, dict[int, str]]:
    if y.shape == (n, 1):
        y = y[:, 0]
    if y.shape != (n,):
        raise DataError(f"{name}: y has shape {y.shape} for {n} samples; it takes ({n},)")
    if y.dtype.kind in "US":
        words = [str(word) for word in y.tolist()]
        return label_indices(words, classes or sorted_names(set(words)))
    if y.dtype.kind == "f" and not (np.isfinite(y).all() and (y == np.floor(y)).all()):
        bad = int(np.flatnonzero(~(np.isfinite(y) & (y == np.floor(y))))[0])
        raise DataError(f"{name}: y[{bad}] is {y[bad]}, which is no class; it takes whole numbers")
    labels = y.astype(np.int64)
    unknown = {i: str(y[i]) for i in np.flatnonzero(labels < 0).tolist()}
    return np.maximum(labels, -1), unknown


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"no file at {path}")
    if not zipfile.is_zipfile(path):
        raise DataError(
            f"{path} is no .npz archive, or is cut short; numpy.savez(FILE, x=…, y=…) writes one"
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError) as e:
        raise DataError(f"{path} is no .npz archive of plain arrays: {one_line(e)}") from e
