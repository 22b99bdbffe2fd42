"""``cut:60-20-20:SOURCE``: another source, cut into train, validation and test by percentages.

What was trained on such parts is compressed and scored on the same parts, because the words say so.
"""

from __future__ import annotations

from dataclasses import replace

from ...errors import DataError
from ..data_source import DataSource, open_source
from ..splits import named_parts

DEFAULT = "60-20-20"


def cut(text: str, classes: list[str] | None = None) -> DataSource:
    """Seeded and stratified by label; duplicates stay together as everywhere (`train.splits`).

    Raises:
        DataError: the percentages do not add up to 100, or SOURCE names splits of its own.
    """
    shares, _, inner = text.partition(":")
    numbers = [int(part) for part in shares.split("-") if part.isdigit()]
    if len(numbers) != 3 or shares.count("-") != 2 or sum(numbers) != 100 or min(numbers) < 1:
        raise DataError(f"cut:{shares} is no cut; give three percentages, as in cut:{DEFAULT}:…")
    source = open_source(inner, classes)
    if source.splits is not None and len(set(source.splits)) > 1:
        raise DataError(f"{inner} names splits of its own; leave out cut:{shares}:")
    if source.labels is None:
        raise DataError(f"{inner} has no labels; there is nothing to train on")
    names = ("train", "validation", "test")
    parts = named_parts(
        source.labels, {n: share / 100 for n, share in zip(names, numbers, strict=True)}
    )
    return replace(source, splits=parts)
