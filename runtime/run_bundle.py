"""From a photo, a text or arrays to the task's answer: preprocess as the bundle says, infer, read the outputs.

The bundle's own `preprocess.json` and `tokenizer.json` are executed, so that what the engine sees
here is what it was scored on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact.bundle import Bundle, open_bundle
from ..artifact.preprocess import ImagePreprocess, decode
from ..artifact.row_text import significant
from ..artifact.tensor_spec import TensorSpec
from ..artifact.token_inputs import for_network, token_inputs
from ..errors import DataError, InputError, MissingPart, one_line

TOP = 5
# An output that is read as class scores; more axes or a single value are printed as numbers.
_CLASS_AXES = 2

Arrays = dict[str, np.ndarray]
# All inputs in, all outputs out: a device is asked once.
Remote = Callable[[list[Arrays]], list[Arrays]]


@dataclass(frozen=True)
class Answer:
    """What the network says of one input.

    Attributes:
        source: the input as it was given.
        outputs: the engine's outputs, ``[n, …]`` by name, n rows of this input (1 of a photo or text).
        top: for a classification the highest classes of the first row, best first: ``{"index",
            "class", "score", "probability"}``; None for other tasks.
    """

    source: str
    outputs: Arrays
    top: list[dict[str, Any]] | None

    def as_json(self) -> dict[str, Any]:
        """Plain values: the top classes, and every output's shape and range."""
        summary = {name: summarize(array) for name, array in self.outputs.items()}
        found: dict[str, Any] = {"input": self.source, "outputs": summary}
        return found if self.top is None else {**found, "top": self.top}

    def lines(self) -> list[str]:
        """The same to read, the input's name first; nothing in it can steer a terminal."""
        if self.top is not None:
            rows = [f"  {c['probability']:7.2%}  {c['class']}" for c in self.top]
        else:
            rows = [f"  {name}  {_words(summarize(a))}" for name, a in self.outputs.items()]
        return ["".join(c if c.isprintable() else "?" for c in row) for row in (self.source, *rows)]


def run_bundle(path: Path, sources: Sequence[str], remote: Remote | None = None) -> list[Answer]:
    """Run a bundle's engine on photos, texts or array files.

    Args:
        path: a bundle, or one engine file (then only array files are inputs).
        sources: an image file, a text or a ``.txt`` file, an ``.npz`` with an array an input name, or
            an ``.npy`` for a network of one input; arrays are preprocessed already and have the batch
            axis.
        remote: runs all inputs elsewhere (a device); None loads the shipped engine here.

    Raises:
        InputError: a source cannot be read, or is not what this bundle takes.
    """
    bundle = open_bundle(path) if path.is_dir() else None
    if remote is not None:
        if bundle is None:
            raise InputError(f"{path} is no bundle; a device takes bundles only")
        specs = bundle_specs(bundle)
        read = _reader(bundle, specs)
        split = [split_rows(specs, read(source)) for source in sources]
        outputs = iter(remote([part for parts, _ in split for part in parts]))
        joined = [join_rows([next(outputs) for _ in parts], n) for parts, n in split]
        return _answers(bundle, sources, joined)
    from .engine import load

    with load(path) as engine:
        read = _reader(bundle, engine.input_specs)
        joined = []
        for source in sources:
            parts, n = split_rows(engine.input_specs, read(source))
            joined.append(join_rows([engine.run(part) for part in parts], n))
        return _answers(bundle, sources, joined)


def bundle_specs(bundle: Bundle) -> list[TensorSpec]:
    """The inputs of the shipped engine as the manifest tells them: static shapes, batch included."""
    shapes = bundle.engine().input_shapes
    return [
        TensorSpec(i["name"], tuple(shapes.get(i["name"], i["shape"])), i["dtype"])
        for i in bundle.manifest.inputs
    ]


def _answers(
    bundle: Bundle | None, sources: Sequence[str], outputs: Sequence[Arrays]
) -> list[Answer]:
    names = _class_names(bundle)
    by_class = names is not None or (
        bundle is not None and bundle.manifest.recipe.get("task") is None
    )
    return [
        Answer(source, found, top_classes(found, names) if by_class else None)
        for source, found in zip(sources, outputs, strict=True)
    ]


def split_rows(specs: Sequence[TensorSpec], arrays: Arrays) -> tuple[list[Arrays], int | None]:
    """Any number of rows as whole batches of an engine's fixed batch, the last one filled up.

    Returns:
        The batches, and the number of rows that `join_rows` keeps; None where nothing was split.

    Raises:
        InputError: inputs differ in their number of rows.
    """
    rows = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    n, batch = next(iter(rows.values()), 0), specs[0].shape[0] if specs[0].shape else None
    if batch is None or n == batch or n == 0:
        return [arrays], None
    if len(set(rows.values())) > 1:
        raise InputError(f"inputs differ in their number of rows: {rows}")
    parts = []
    for start in range(0, n, batch):
        index = np.minimum(np.arange(start, start + batch), n - 1)
        parts.append({name: np.ascontiguousarray(a[index]) for name, a in arrays.items()})
    return parts, n


def join_rows(parts: Sequence[Arrays], n: int | None) -> Arrays:
    """The outputs of `split_rows`'s batches as one, without the rows that filled up."""
    if n is None:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts])[:n] for name in parts[0]}


def _reader(bundle: Bundle | None, specs: Sequence[TensorSpec]) -> Callable[[str], Arrays]:
    """The function from a source to the engine's inputs, with the batch axis."""
    files = bundle.manifest.files if bundle else {}
    if bundle and "preprocess.json" in files:
        declared = ImagePreprocess.from_file(bundle.root / "preprocess.json")
        takes, read = "an image file", functools.partial(_image, declared)
    elif bundle and "tokenizer.json" in files:
        takes, read = "a text", functools.partial(_text, _tokenizer(bundle.root / "tokenizer.json"))
    else:
        takes, read = "an .npz or .npy file", None

    def inputs(source: str) -> Arrays:
        if source.endswith((".npz", ".npy")):
            return _arrays(Path(source), specs)
        if read is None:
            raise InputError(
                f"--input {source}: this engine declares no preprocessing; it takes {takes} with "
                f"{', '.join(map(str, specs))}"
            )
        found = for_network(read(source), [spec.name for spec in specs])
        if found is None:
            raise InputError(
                f"--input {source}: this network takes {len(specs)} inputs; give an .npz with "
                f"{', '.join(map(str, specs))}"
            )
        return {name: array[None] for name, array in found.items()}

    return inputs


def _image(declared: ImagePreprocess, source: str) -> Arrays:
    try:
        data = Path(source).read_bytes()
    except (OSError, ValueError) as e:
        raise InputError(f"--input {source} cannot be read: {one_line(e)}") from e
    try:
        return {"image": declared.apply(decode(data))}
    except DataError as e:
        raise DataError(f"--input {source}: {e}") from e


def _text(tokenizer: Any, source: str) -> Arrays:
    text = source
    if source.endswith(".txt"):
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise InputError(f"--input {source} cannot be read: {one_line(e)}") from e
    arrays = token_inputs(tokenizer, text)
    if not arrays["attention_mask"].any():
        raise DataError(f"--input {source!r} is a text without tokens")
    return arrays


def _tokenizer(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as e:
        raise MissingPart(
            f"texts need tokenizers ({one_line(e)}): pip install 'edgeml-toolchain[text]'"
        ) from e
    try:
        return Tokenizer.from_file(str(path))
    except Exception as e:  # tokenizers raises plain Exception
        raise InputError(f"{path} is no tokenizer: {one_line(e)}") from e


def _arrays(path: Path, specs: Sequence[TensorSpec]) -> Arrays:
    """Arrays of a file, in the engine's dtypes where nothing is lost."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            found = loaded
        else:  # an .npz is read member by member, and each may be damaged
            with loaded:
                found = {k: loaded[k] for k in loaded.files}
    except Exception as e:  # OSError, ValueError, BadZipFile, EOFError …
        raise InputError(f"--input {path} cannot be read: {one_line(e)}") from e
    if isinstance(found, np.ndarray):
        if len(specs) != 1:
            names = ", ".join(spec.name for spec in specs)
            raise InputError(
                f"--input {path} holds one array, the network takes {names}: give .npz"
            )
        found = {specs[0].name: found}
    dtypes = {spec.name: spec.dtype for spec in specs}
    for name, array in found.items():
        if name in dtypes and array.dtype != dtypes[name]:
            if not np.can_cast(array.dtype, dtypes[name], "same_kind"):
                raise InputError(
                    f"--input {path}: {name} is {array.dtype}, the network takes {dtypes[name]}"
                )
            found[name] = array.astype(dtypes[name])
    return found


def _class_names(bundle: Bundle | None) -> list[str] | None:
    if bundle is None or "classes.txt" not in bundle.manifest.files:
        return None
    return (bundle.root / "classes.txt").read_text(encoding="utf-8").splitlines()


def top_classes(outputs: Arrays, names: Sequence[str] | None) -> list[dict[str, Any]] | None:
    """The highest of the first output's first row, best first; None when it is no row of scores.

    >>> [c["class"] for c in top_classes({"y": np.array([[0.0, 2.0, 1.0]])}, ["a", "b", "c"])]
    ['b', 'c', 'a']
    """
    scores = next(iter(outputs.values()))
    if scores.ndim < _CLASS_AXES or scores[0].size < 2 or scores[0].size != scores.shape[1]:
        return None
    row = scores[0].ravel().astype(np.float64)
    if np.isnan(row).any():
        return None
    probability = _probabilities(row)
    # Equal scores in the order of the classes, so that an answer repeats.
    order = np.argsort(-row, kind="stable")[:TOP]
    return [
        {
            "index": int(i),
            "class": names[i] if names and i < len(names) else str(i),
            "score": float(row[i]),
            "probability": float(probability[i]),
        }
        for i in order
    ]


def _probabilities(row: np.ndarray) -> np.ndarray:
    """The row itself where it is a distribution already, else its softmax."""
    if row.min() >= 0 and abs(row.sum() - 1) < 1e-3:
        return row
    powers = np.exp(row - row.max())
    return powers / powers.sum()


def _words(summary: dict[str, Any]) -> str:
    shape = "×".join(map(str, summary["shape"])) or "scalar"
    line = f"{shape} {summary['dtype']}"
    if summary["min"] is not None:
        line += "".join(f"  {key} {significant(summary[key], 4)}" for key in ("min", "mean", "max"))
    bad = summary["not_finite"]
    return line + (f"  {bad} values not finite" if bad else "")


def summarize(array: np.ndarray) -> dict[str, Any]:
    """Shape, dtype and the range of the finite values of an array."""
    values = array[np.isfinite(array)] if array.dtype.kind == "f" else array
    some = values.size > 0 and array.dtype.kind in "fiub"
    return {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "min": float(values.min()) if some else None,
        "mean": float(values.mean(dtype=np.float64)) if some else None,
        "max": float(values.max()) if some else None,
        "not_finite": int(array.size - values.size),
    }
