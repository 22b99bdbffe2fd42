"""A folder a class, as a directory or a zip; top folders train, val, test are splits."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePath, PurePosixPath

import numpy as np

from ...errors import DataError, one_line
from ..data_source import SPLIT_WORDS, DataSource

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")

LARGEST_IMAGE = 2**29  # bytes; a zip of some kilobytes may claim any number


def imagefolder(place: str, classes: list[str] | None = None) -> DataSource:
    """Images by ``CLASS/NAME`` or ``SPLIT/CLASS/NAME``.

    Args:
        place: a directory or a ``.zip``; a zip is read in place, nothing of it is unpacked.
        classes: names in the order of the network's outputs; by default sorted (numbers by value).

    Raises:
        DataError: it is missing, is no zip, or holds no image in a class folder.
    """
    path = Path(place)
    if path.is_dir():
        files, read = _list_directory(path), _read_file(path)
    elif path.is_file() and path.suffix.lower() == ".zip":
        files, read = _open_zip(path)
    else:
        raise DataError(f"imagefolder:{place} is neither a directory nor a .zip that exists")
    return build(f"imagefolder:{place}", files, read, classes)


def build(
    name: str, files: list[str], read: Callable[[str], bytes], classes: list[str] | None
) -> DataSource:
    """A source from relative names and a way to read them; also used for named archives."""
    images = sorted(f for f in files if f.lower().endswith(SUFFIXES))
    tops = {PurePosixPath(f).parts[0] for f in images if len(PurePosixPath(f).parts) > 1}
    # One top folder around everything (as zips have) is no class.
    while len(tops) == 1 and all(len(PurePosixPath(f).parts) > 2 for f in images):
        top = tops.pop()
        if top.lower() in SPLIT_WORDS:
            tops.add(top)
            break
        inner = {f: str(PurePosixPath(*PurePosixPath(f).parts[1:])) for f in images}
        outer = {short: f for f, short in inner.items()}
        images, read = sorted(outer), _through(outer, read)
        tops = {PurePosixPath(f).parts[0] for f in images}
    by_split = bool(tops) and all(top.lower() in SPLIT_WORDS for top in tops)
    depth = 1 if by_split else 0
    inside = [f for f in images if len(PurePosixPath(f).parts) > depth + 1]
    if not inside:
        seen = f"{len(images)} images lie in no class folder" if images else "no image in it"
        raise DataError(f"{name}: {seen}; it takes CLASS/NAME.jpg or SPLIT/CLASS/NAME.jpg")
    words = [PurePosixPath(f).parts[depth] for f in inside]
    names = classes or sorted_names(set(words))
    labels, unknown = label_indices(words, names)
    return DataSource(
        name=name,
        kind="image",
        read=lambda index: read(inside[index]),
        places=inside,
        labels=labels,
        unknown=unknown,
        splits=[SPLIT_WORDS[PurePosixPath(f).parts[0].lower()] for f in inside]
        if by_split
        else None,
        classes=names,
    )


def sorted_names(names: set[str]) -> list[str]:
    """Class names sorted; numbers by value, so that class 10 does not come before class 2."""
    if all(re.fullmatch(r"\d+", name) for name in names):
        return sorted(names, key=int)
    return sorted(names)


def label_indices(words: list[str], classes: list[str]) -> tuple[np.ndarray, dict[int, str]]:
    """int64 [n] indices into `classes`, −1 for a word that is none of them, and those words."""
    index = {name: i for i, name in enumerate(classes)}
    labels = np.array([index.get(word, -1) for word in words], np.int64)
    return labels, {i: words[i] for i in np.flatnonzero(labels < 0).tolist()}


def _list_directory(path: Path) -> list[str]:
    return [
        f.relative_to(path).as_posix()
        for f in path.rglob("*")
        if f.is_file() and not _hidden(f.relative_to(path))
    ]


def _hidden(path: PurePath) -> bool:
    """Files of the system's own: ``.DS_Store``, macOS's ``__MACOSX/._1.jpg``."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _read_file(root: Path) -> Callable[[str], bytes]:
    def read(name: str) -> bytes:
        try:
            return (root / name).read_bytes()
        except OSError as e:
            raise DataError(f"{root / name} cannot be read: {e.strerror}") from e

    return read


def _open_zip(path: Path) -> tuple[list[str], Callable[[str], bytes]]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as e:
        raise DataError(f"{path} is no zip, or is cut short: {one_line(e)}") from e
    files = [
        info.filename
        for info in archive.infolist()
        if not info.is_dir() and not _hidden(PurePosixPath(info.filename))
    ]

    def read(name: str) -> bytes:
        try:
            if (size := archive.getinfo(name).file_size) > LARGEST_IMAGE:
                raise DataError(f"{path}: {name} unpacks to {size:,} bytes, which is no image")
            return archive.read(name)
        except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, EOFError) as e:
            raise DataError(f"{path}: {name} cannot be read: {one_line(e)}") from e

    return files, read


def _through(names: dict[str, str], read: Callable[[str], bytes]) -> Callable[[str], bytes]:
    return lambda name: read(names[name])
