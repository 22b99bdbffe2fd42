"""Images without labels: every image below a directory."""

from __future__ import annotations

from pathlib import Path

from ...errors import DataError
from ..data_source import DataSource
from .imagefolder import SUFFIXES, _list_directory, _read_file


def images_dir(place: str, classes: list[str] | None = None) -> DataSource:
    """Every image below `place`, sorted by its relative name.

    Raises:
        DataError: it is no directory, or holds no image.
    """
    path = Path(place)
    if not path.is_dir():
        raise DataError(f"images:{place} is no directory that exists")
    files = sorted(f for f in _list_directory(path) if f.lower().endswith(SUFFIXES))
    if not files:
        raise DataError(f"images:{place} holds no image ({', '.join(SUFFIXES)})")
    read = _read_file(path)
    return DataSource(
        name=f"images:{place}",
        kind="image",
        read=lambda index: read(files[index]),
        places=files,
        classes=classes,
    )
