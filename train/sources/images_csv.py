"""A CSV of image files and labels: columns ``file``, ``label`` and, if splits are named, ``split``."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np

from ...errors import DataError, nearest, one_line
from ..data_source import SPLIT_WORDS, DataSource
from .imagefolder import label_indices, sorted_names

LARGEST = 2**31  # no network has so many classes


def images_csv(place: str, classes: list[str] | None = None) -> DataSource:
    """Images listed in a CSV; paths are relative to it.

    Labels are numbers (the index of the network's output) or names, all of one kind. Names are put
    in the order of `classes`, or sorted.

    Raises:
        DataError: the file is missing or no CSV, lacks a column, or holds an unknown split.
    """
    path = Path(place)
    rows, columns = read_rows(path)
    for column in ("file", "label"):
        if column not in columns:
            have = ", ".join(columns) or "none"
            raise DataError(
                f"{path} has no column {column!r} (columns: {have}; the first line names them); "
                f"it needs file,label"
            )
    names = [row["file"] or "" for row in rows]
    words = [(row["label"] or "").strip() for row in rows]
    numeric = bool(words) and all(re.fullmatch(r"-?\d+", word) for word in words)
    unknown: dict[int, str] = {}
    if numeric:
        # Beyond any network's outputs is as wrong as below zero, and need not fit into 64 bits.
        labels = np.array([min(max(int(word), -1), LARGEST) for word in words], np.int64)
        unknown = {i: words[i] for i in np.flatnonzero((labels < 0) | (labels == LARGEST)).tolist()}
    else:
        classes = classes or sorted_names(set(words) - {""})
        labels, unknown = label_indices(words, classes)
    folder = path.parent

    def read(index: int) -> bytes:
        try:
            return (folder / names[index]).read_bytes()
        except (OSError, ValueError) as e:
            reason = getattr(e, "strerror", None) or one_line(e)
            raise DataError(reason) from e

    return DataSource(
        name=f"images-csv:{place}",
        kind="image",
        read=read,
        places=[f"line {i + 2}: {name or 'an empty name'}" for i, name in enumerate(names)],
        labels=labels,
        unknown=unknown,
        splits=_splits(path, rows) if "split" in columns else None,
        classes=classes,
    )


def read_rows(path: Path) -> tuple[list[dict[str, str]], list[str]]:
    """The lines of a CSV as mappings, and its columns; spaces around a column's name do not count.

    Raises:
        DataError: it cannot be read, or is no CSV of UTF-8 text.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
            rows, columns = list(reader), list(reader.fieldnames)
    except OSError as e:
        raise DataError(f"{path} cannot be read: {e.strerror}") from e
    except (UnicodeDecodeError, csv.Error) as e:
        raise DataError(f"{path} is no CSV of UTF-8 text: {one_line(e)}") from e
    return rows, columns


def _splits(path: Path, rows: list[dict[str, str]]) -> list[str]:
    found = []
    for line, row in enumerate(rows, 2):
        word = (row["split"] or "").strip().lower()
        if word not in SPLIT_WORDS:
            raise DataError(
                f"{path} line {line}: unknown split {word!r}, {nearest(word, SPLIT_WORDS)}"
            )
        found.append(SPLIT_WORDS[word])
    return found
