"""``file.py:factory``: samples from a user's own code, which this RUNS."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ..data_source import SPLIT_WORDS, DataSource
from ..user_code import run_user_function, user_code_runs
from .npz import from_arrays

FORMS = "(x, y) arrays, a list of (array or image bytes, label), or either by split in a dict"


def python_file(reference: str, classes: list[str] | None = None) -> DataSource:
    """What the factory returns: arrays ``(x [n, …], y [n])``; an iterable of ``(sample, label)``
    where a sample is an array without the batch axis or an encoded image's bytes; or a mapping of
    split names to either. Labels are whole numbers.

    Raises:
        DataError: the file or the function is missing, raises, or returns something else.
    """
    made = run_user_function(reference, DataError)
    if isinstance(made, Mapping):
        if not made:
            raise DataError(f"{reference} gives no sample")
        parts = []
        for word, part in made.items():
            if str(word).lower() not in SPLIT_WORDS:
                raise DataError(
                    f"{reference}: {word!r} is no split; known: train, validation, test"
                )
            parts.append((SPLIT_WORDS[str(word).lower()], *_part(reference, part)))
    else:
        parts = [(None, *_part(reference, made))]
    samples = [sample for _, xs, _ in parts for sample in xs]
    labels = [label for _, _, ys in parts for label in ys]
    splits = [split for split, xs, _ in parts for _ in xs]
    named = splits if parts[0][0] is not None else None
    if samples and all(isinstance(sample, bytes) for sample in samples):
        return DataSource(
            name=reference,
            kind="image",
            read=samples.__getitem__,
            places=[f"{Path(reference.rpartition(':')[0]).name}[{i}]" for i in range(len(samples))],
            labels=np.array(labels, np.int64),
            splits=named,
            classes=classes,
        )
    try:
        x = np.stack([np.asarray(sample) for sample in samples])
    except ValueError as e:
        raise DataError(f"{reference}: samples of different shapes; all must be alike") from e
    return from_arrays(reference, x, np.array(labels), named, classes)


def _part(reference: str, part: Any) -> tuple[list[Any], list[int]]:
    arrays = isinstance(part, tuple) and len(part) == 2 and all(hasattr(p, "shape") for p in part)
    if arrays:
        x, y = (np.asarray(p) for p in part)
        if x.ndim < 1 or y.ndim < 1:
            raise DataError(f"{reference} gives a single number; it must give {FORMS}")
        if len(x) != len(y):
            raise DataError(f"{reference}: {len(x)} samples and {len(y)} labels")
        part = zip(x, y, strict=True)
    if not isinstance(part, Iterable) or isinstance(part, (str, bytes)):
        raise DataError(f"{reference} gives {type(part).__name__}; it must give {FORMS}")
    xs, ys = [], []
    for i, pair in enumerate(_running(reference, part)):
        try:
            sample, label = pair
            ys.append(int(label))
            if ys[-1] != label:
                raise ValueError(label)
        except (TypeError, ValueError) as e:
            raise DataError(f"{reference}: item {i} is no (sample, whole number)") from e
        xs.append(bytes(sample) if isinstance(sample, (bytes, bytearray)) else np.asarray(sample))
    if not xs:
        raise DataError(f"{reference} gives no sample")
    return xs, ys


def _running(reference: str, part: Iterable[Any]) -> Iterator[Any]:
    """The items of a user's iterable, whose own code runs while it is read."""
    file = Path(reference.rpartition(":")[0])
    items = iter(part)
    while True:
        with user_code_runs(reference, file, file.resolve().parent, DataError):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item
