"""Texts and labels in a CSV: columns ``text``, ``label`` and, if splits are named, ``split``; or a
folder of such files named by split."""

from __future__ import annotations

import csv
from pathlib import Path

from ...errors import DataError
from ..data_source import SPLIT_WORDS, DataSource
from .imagefolder import label_indices, sorted_names
from .images_csv import read_rows

# A novel is about a million characters; csv's own limit is 131,072.
LONGEST_FIELD = 10_000_000


def text_csv(place: str, classes: list[str] | None = None) -> DataSource:
    """Labelled texts.

    Args:
        place: a CSV, or a folder with ``train.csv``, ``test.csv`` and, if there is one,
            ``validation.csv`` (``val.csv``, ``valid.csv``).
        classes: names in the order of the network's outputs; by default sorted.

    Raises:
        DataError: a file is missing or no CSV, lacks a column, or holds an unknown split.
    """
    path = Path(place)
    if path.is_dir():
        files = [f for f in sorted(path.glob("*.csv")) if f.stem.lower() in SPLIT_WORDS]
        if not files:
            raise DataError(f"{path} holds no train.csv or test.csv")
        rows = [row for file in files for row in _rows(file, SPLIT_WORDS[file.stem.lower()])]
    else:
        rows = _rows(path, None)
    words = [label for _, _, label, _ in rows]
    names = classes or sorted_names(set(words) - {""})
    labels, unknown = label_indices(words, names)
    splits = [split for *_, split in rows]

    def read(index: int) -> str:
        text = rows[index][1]
        if not text.strip():
            raise DataError("is an empty text")
        return text

    return DataSource(
        name=f"text-csv:{place}",
        kind="text",
        read=read,
        places=[place for place, *_ in rows],
        labels=labels,
        unknown=unknown,
        splits=None if None in splits else splits,
        classes=names,
    )


def _rows(path: Path, split: str | None) -> list[tuple[str, str, str, str | None]]:
    """Place, text, label and split of every line."""
    csv.field_size_limit(LONGEST_FIELD)
    rows, columns = read_rows(path)
    for column in ("text", "label"):
        if column not in columns:
            have = ", ".join(columns) or "none"
            raise DataError(
                f"{path} has no column {column!r} (columns: {have}); it needs text,label"
            )
    found = []
    for number, row in enumerate(rows, 2):
        own = split
        if own is None and "split" in columns:
            word = (row["split"] or "").strip().lower()
            if word not in SPLIT_WORDS:
                raise DataError(f"{path}, record {number}: unknown split {word!r}")
            own = SPLIT_WORDS[word]
        label = (row["label"] or "").strip()
        found.append((f"{path.name}, record {number}", row["text"] or "", label, own))
    return found
