"""MNIST and Fashion-MNIST by name: 60,000 + 10,000 grey images of 28×28, as published (idx, gzip)."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from pathlib import Path

import numpy as np

from ...artifact.content_hash import hash_file
from ...errors import DataError, one_line
from ..data_source import DataSource
from .archive import Archive, data_folder, fetch

_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
# In the order of _FILES; as TensorFlow Datasets and others list them.
_SHA256 = {
    "mnist": (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
    "fashion-mnist": (
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
}
CLASSES = {
    "mnist": [str(digit) for digit in range(10)],
    "fashion-mnist": [
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
        "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ],
}  # fmt: skip


def mnist(classes: list[str] | None = None) -> DataSource:
    """MNIST, downloaded once."""
    return _downloaded("mnist", classes)


def fashion_mnist(classes: list[str] | None = None) -> DataSource:
    """Fashion-MNIST, downloaded once."""
    return _downloaded("fashion-mnist", classes)


def mnist_in(folder: str, classes: list[str] | None = None) -> DataSource:
    """MNIST from files that lie in `folder`."""
    return _in_folder("mnist", Path(folder), classes)


def fashion_mnist_in(folder: str, classes: list[str] | None = None) -> DataSource:
    """Fashion-MNIST from files that lie in `folder`."""
    return _in_folder("fashion-mnist", Path(folder), classes)


def _downloaded(word: str, classes: list[str] | None) -> DataSource:
    base = _MNIST if word == "mnist" else _FASHION
    names = [f"{stem}-ubyte.gz" for stem in _FILES]
    paths = [
        fetch(Archive(name, base + name, sha256), data_folder(word), word)
        for name, sha256 in zip(names, _SHA256[word], strict=True)
    ]
    return _source(word, paths, classes, [])


def _in_folder(word: str, folder: Path, classes: list[str] | None) -> DataSource:
    """Files by their published names; ``t3k-…`` serves for ``t10k-…``, and any difference from what
    was published is told."""
    paths, notes = [], []
    for stem, sha256 in zip(_FILES, _SHA256[word], strict=True):
        names = [f"{stem}-ubyte.gz", f"{stem}-ubyte", f"{stem.replace('-idx', '.idx')}-ubyte"]
        names += [name.replace("t10k", "t3k") for name in names if "t10k" in name]
        path = next((folder / name for name in names if (folder / name).is_file()), None)
        if path is None:
            raise DataError(f"{word}: no {names[0]} in {folder}")
        if path.suffix == ".gz" and hash_file(path) != sha256:
            notes.append(f"{path.name} is not the published archive; used as it lies")
        paths.append(path)
    return _source(f"{word}:{folder}", paths, classes, notes)


def _source(
    name: str, paths: list[Path], classes: list[str] | None, notes: list[str]
) -> DataSource:
    images = [read_idx(path, 3) for path in paths[::2]]
    labels = [read_idx(path, 1) for path in paths[1::2]]
    for image, label, path in zip(images, labels, paths[::2], strict=True):
        if len(image) != len(label):
            raise DataError(f"{path} holds {len(image)} images, its labels are {len(label)}")
    pixels = np.concatenate(images)

    def read(index: int) -> bytes:
        # As PNG, so that decoding is part of what is timed end to end, as with a user's images.
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(pixels[index]).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    splits = ["train"] * len(images[0]) + ["test"] * len(images[1])
    numbers = [f"{split}[{i}]" for split, n in (("train", len(images[0])), ("test", len(images[1])))
               for i in range(n)]  # fmt: skip
    return DataSource(
        name=name,
        kind="image",
        read=read,
        places=[f"{name} {number}" for number in numbers],
        labels=np.concatenate(labels).astype(np.int64),
        splits=splits,
        classes=classes or CLASSES[name.partition(":")[0]],
        notes=notes,
    )


def read_idx(path: Path, axes: int) -> np.ndarray:
    """uint8 array of an idx file, gzipped or not.

    Raises:
        DataError: it is none, has another number of axes, or is cut short.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        head = 4 + 4 * axes
        magic, *shape = struct.unpack(f">{1 + axes}I", data[:head])
    except (OSError, EOFError, zlib.error, struct.error) as e:
        raise DataError(f"{path} is no idx file, or is cut short: {one_line(e)}") from e
    if magic != 0x0800 + axes:
        raise DataError(f"{path} is no idx file of {axes} axes of bytes (magic {magic:#06x})")
    size = int(np.prod(shape, dtype=np.int64))
    if len(data) - head != size:
        raise DataError(f"{path} is cut short: {len(data) - head:,} bytes of {size:,}")
    return np.frombuffer(data, np.uint8, size, head).reshape(shape)
