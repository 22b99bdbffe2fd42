"""``hf:NAME``: a data set of the Hugging Face hub, or of a folder in its form, by the library datasets.

Texts or images with one label each. The library reads CSV, JSON and Parquet, and since version 4 runs
no code of a repository.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ...errors import DataError, MissingPart, one_line
from ..data_source import SPLIT_WORDS, DataSource
from .imagefolder import label_indices, sorted_names

TEXT, IMAGE, LABEL = ("text", "sentence", "content"), ("image", "img"), ("label", "labels")
RUNS_NO_CODE = 4  # the first version of the library without loading scripts


def hf_dataset(name: str, classes: list[str] | None = None) -> DataSource:
    """Labelled texts (columns text, label) or images (image, label).

    Args:
        name: of the hub, or a folder; ``NAME:CONFIG`` where a data set has several.
        classes: names in the order of the network's outputs; by default the data set's own.

    Raises:
        MissingPart: datasets is not installed, or so old that it could run a repository's code.
        DataError: it cannot be read, or lacks such columns.
    """
    datasets = _library(name)
    place, _, config = name.partition(":")
    try:
        found = datasets.load_dataset(place, config or None)
    except Exception as e:  # the library raises whatever its readers and the network do
        raise DataError(f"hf:{name} cannot be read: {one_line(e)}") from e
    parts, notes = _labelled(found, name)
    columns = next(iter(parts.values())).column_names
    text, image, label = (_column(columns, known) for known in (TEXT, IMAGE, LABEL))
    if label is None or (text is None and image is None):
        raise DataError(
            f"hf:{name} has the columns {', '.join(columns)}; it takes text or image, and label"
        )
    words, splits, rows = [], [], []
    for split, part in parts.items():
        if text is None:
            part = part.cast_column(image, datasets.Image(decode=False))
        words += _words(part, label)
        splits += [SPLIT_WORDS[split.lower()]] * len(part)
        rows += [(part, index) for index in range(len(part))]
    own = getattr(rows[0][0].features[label], "names", None)
    names = classes or own or sorted_names(set(words) - {""})
    labels, unknown = label_indices(words, names)

    def read(index: int) -> Any:
        part, row = rows[index]
        return _text(part[row][text]) if text is not None else _image(part[row][image])

    return DataSource(
        name=f"hf:{name}",
        kind="image" if text is None else "text",
        read=read,
        places=[f"{s}, row {row}" for s, (_, row) in zip(splits, rows, strict=True)],
        labels=np.asarray(labels),
        unknown=unknown,
        splits=splits if len(parts) > 1 else None,
        classes=names,
        notes=notes,
    )


def _library(name: str) -> Any:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import datasets
    except ImportError as e:
        raise MissingPart(
            f"--data hf:{name} needs the library datasets ({one_line(e)}): pip install -c "
            "constraints.txt datasets; a folder of train.csv, test.csv (text,label) is text-csv:DIR, "
            "one of images imagefolder:DIR"
        ) from e
    if int(datasets.__version__.partition(".")[0]) < RUNS_NO_CODE:
        raise MissingPart(
            f"--data hf:{name}: datasets {datasets.__version__} can run code of a repository; "
            f"pip install -c constraints.txt 'datasets>={RUNS_NO_CODE}'"
        )
    datasets.disable_progress_bars()
    return datasets


def _labelled(found: Any, name: str) -> tuple[dict[str, Any], list[str]]:
    """Splits that have one of our names and labels; what was left out is told."""
    parts, left = {}, []
    for split, part in found.items():
        label = _column(part.column_names, LABEL)
        # Competitions hide the labels of their test sets: all are −1.
        hidden = label is not None and len(part) and set(part[label]) == {-1}
        if split.lower() not in SPLIT_WORDS or hidden or not len(part):
            left.append(split)
        else:
            parts[split] = part
    if not parts:
        raise DataError(f"hf:{name} has no labelled train, validation or test split")
    return parts, [
        f"hf:{name}: left out {', '.join(left)} (no split of ours, or no labels)"
    ] * bool(left)


def _column(columns: list[str], known: tuple[str, ...]) -> str | None:
    return next((name for name in known if name in columns), None)


def _words(part: Any, label: str) -> list[str]:
    names = getattr(part.features[label], "names", None)
    values = part[label]
    return ["" if v is None else names[v] if names and v >= 0 else str(v) for v in values]


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError("is an empty text")
    return value


def _image(value: Any) -> bytes:
    if not value or not value.get("bytes"):
        raise DataError("is an image without bytes")
    return value["bytes"]
