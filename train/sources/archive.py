"""Archives of named data sets: downloaded once, checked by sha256, never unpickled."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from ...artifact.atomic_file import disk_errors
from ...artifact.content_hash import hash_file
from ...errors import DataError, one_line

_PIECE = 1 << 20


@dataclass(frozen=True)
class Archive:
    """One file of a data set as its makers publish it."""

    name: str
    url: str
    sha256: str


def data_folder(name: str) -> Path:
    """Where a named data set's downloads lie: ``$EDGEML_CACHE/data/NAME``."""
    cache = os.environ.get("EDGEML_CACHE") or Path.home() / ".cache" / "edgeml"
    return Path(cache) / "data" / name


def fetch(archive: Archive, folder: Path, word: str) -> Path:
    """The archive's file, downloaded into `folder` if it is not there.

    Args:
        word: the data set's name, for messages.

    Raises:
        DataError: it cannot be downloaded, or is not what was published (the file is kept aside,
            with ``.wrong`` behind its name).
    """
    path = folder / archive.name
    if not path.is_file():
        part = folder / f"{archive.name}.{os.getpid()}.part"
        with disk_errors(path):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                request = urllib.request.Request(archive.url, headers={"User-Agent": "edgeml"})
                with urllib.request.urlopen(request, timeout=60) as answer, part.open("wb") as file:
                    while piece := answer.read(_PIECE):
                        file.write(piece)
            except (
                urllib.error.URLError,
                http.client.HTTPException,  # a chunked answer that was cut short
                TimeoutError,
                ConnectionError,
            ) as e:
                part.unlink(missing_ok=True)
                raise DataError(
                    f"{word}: {archive.url} cannot be downloaded ({one_line(e)}); "
                    f"get {archive.name} elsewhere and give --data-dir FOLDER"
                ) from e
            os.replace(part, path)
    found = hash_file(path)
    if found != archive.sha256:
        aside = path.with_name(f"{path.name}.wrong")
        os.replace(path, aside)
        raise DataError(
            f"{word}: {archive.name} has sha256 {found}, expected {archive.sha256}; kept aside as "
            f"{aside}, the same command downloads it again"
        )
    return path
