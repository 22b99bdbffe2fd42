"""CIFAR-10 by name: 50,000 + 10,000 RGB images of 32×32, from its makers' binary archive."""

from __future__ import annotations

import io
import tarfile
import zlib
from pathlib import Path

import numpy as np

from ...artifact.content_hash import hash_file
from ...errors import DataError, one_line
from ..data_source import DataSource
from .archive import Archive, data_folder, fetch

# The binary form; the "python version" holds pickles.
ARCHIVE = Archive(
    "cifar-10-binary.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
CLASSES = [
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
]  # fmt: skip
RECORD = 1 + 3 * 32 * 32  # a label, then the red, green and blue planes


def cifar10(classes: list[str] | None = None) -> DataSource:
    """CIFAR-10, downloaded once."""
    path = fetch(ARCHIVE, data_folder("cifar10"), "cifar10")
    return _source("cifar10", _from_tar(path), classes, [])


def cifar10_in(place: str, classes: list[str] | None = None) -> DataSource:
    """CIFAR-10 from a folder that holds the archive, or its unpacked ``*.bin`` files.

    Raises:
        DataError: it holds neither.
    """
    folder, notes = Path(place), []
    archive = folder / ARCHIVE.name
    if archive.is_file():
        if hash_file(archive) != ARCHIVE.sha256:
            notes.append(f"{archive.name} is not the published archive; used as it lies")
        return _source(f"cifar10:{place}", _from_tar(archive), classes, notes)
    for inner in (folder, folder / "cifar-10-batches-bin"):
        if all((inner / name).is_file() for name in FILES):
            batches = {name: (inner / name).read_bytes() for name in FILES}
            return _source(f"cifar10:{place}", batches, classes, notes)
    raise DataError(
        f"cifar10: no {ARCHIVE.name} and no {FILES[0]} in {folder}; for images in folders give "
        "--data imagefolder:DIR_OR_ZIP"
    )


def _from_tar(path: Path) -> dict[str, bytes]:
    """The batches, by base name, read in place: nothing is unpacked, so no name points anywhere."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                # As long as six whole batches may be; a bomb is not read to its end.
                if name in FILES and member.isfile() and member.size <= RECORD * 10_000:
                    found[name] = archive.extractfile(member).read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as e:
        raise DataError(f"{path} is no archive of CIFAR-10: {one_line(e)}") from e
    if missing := [name for name in FILES if name not in found]:
        raise DataError(f"{path} holds no {missing[0]}")
    return found


def _source(
    name: str, batches: dict[str, bytes], classes: list[str] | None, notes: list[str]
) -> DataSource:
    records = []
    for file in FILES:
        data = batches[file]
        if not data or len(data) % RECORD:
            raise DataError(f"{name}: {file} is cut short ({len(data):,} bytes)")
        records.append(np.frombuffer(data, np.uint8).reshape(-1, RECORD))
    sizes = [len(part) for part in records]
    whole = np.concatenate(records)
    pixels = whole[:, 1:].reshape(-1, 3, 32, 32)
    splits = ["train"] * sum(sizes[:-1]) + ["test"] * sizes[-1]

    def read(index: int) -> bytes:
        from PIL import Image

        buffer = io.BytesIO()
        image = Image.fromarray(np.ascontiguousarray(pixels[index].transpose(1, 2, 0)))
        image.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    return DataSource(
        name=name,
        kind="image",
        read=read,
        places=[f"{name} {split}[{i}]" for i, split in enumerate(splits)],
        labels=whole[:, 0].astype(np.int64),
        splits=splits,
        classes=classes or CLASSES,
        notes=notes,
    )
