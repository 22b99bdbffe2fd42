"""Reads and writes the tensor files of the device protocol: safetensors, by the standard library.

The format is a little-endian u64 length, a JSON header of that many bytes ``{name: {"dtype", "shape",
"data_offsets"}}`` and the data (github.com/huggingface/safetensors, its README). A board may lack numpy, so
tensors are bytes first and arrays only where numpy is.
"""

from __future__ import annotations

import array
import hashlib
import json
import struct
import sys
from typing import Any, NamedTuple, Sequence

from ...errors import InputError

# safetensors' name → numpy's name, bytes an element, struct's letter.
DTYPES = {
    "F64": ("float64", 8, "d"),
    "F32": ("float32", 4, "f"),
    "F16": ("float16", 2, "e"),
    "I64": ("int64", 8, "q"),
    "I32": ("int32", 4, "i"),
    "I16": ("int16", 2, "h"),
    "I8": ("int8", 1, "b"),
    "U8": ("uint8", 1, "B"),
    "BOOL": ("bool", 1, "?"),
}
_NAMES = {numpy_name: name for name, (numpy_name, _, _) in DTYPES.items()}
_HEADER_LIMIT = 16 * 2**20


class Tensor(NamedTuple):
    """One tensor as it lies in the file.

    Attributes:
        dtype: numpy's name of the type.
        shape: of the array.
        data: its elements, little-endian, rows first.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def read_tensors(path: str) -> dict[str, Tensor]:
    """Every tensor of a file.

    Raises:
        InputError: the file is no safetensors file, or is cut short.
    """
    with open(path, "rb") as file:
        content = file.read()
    return parse_tensors(content, path)


def parse_tensors(content: bytes, where: str) -> dict[str, Tensor]:
    """`read_tensors` of bytes; `where` is for the message."""
    try:
        (length,) = struct.unpack_from("<Q", content)
        if length > min(_HEADER_LIMIT, len(content) - 8):
            raise ValueError("its header is longer than the file")
        header = json.loads(content[8 : 8 + length].decode("utf-8"))
        base = 8 + length
        found = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            dtype, size, _ = DTYPES[entry["dtype"]]
            begin, end = entry["data_offsets"]
            shape = tuple(int(n) for n in entry["shape"])
            if not 0 <= begin <= end <= len(content) - base or end - begin != size * count(shape):
                raise ValueError(f"tensor {name!r} lies outside the file")
            found[name] = Tensor(dtype, shape, content[base + begin : base + end])
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as e:
        raise InputError(f"{where} is no tensor file: {e}") from e
    return found


def write_tensors(tensors: dict[str, Tensor]) -> bytes:
    """A tensor file of these tensors, in the order of their names."""
    header, parts, at = {}, [], 0
    for name in sorted(tensors):
        tensor = tensors[name]
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + len(tensor.data)],
        }
        parts.append(tensor.data)
        at += len(tensor.data)
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # data begins at a multiple of 8, as the library writes it
    return struct.pack("<Q", len(text)) + text + b"".join(parts)


def count(shape: Sequence[int]) -> int:
    """Elements of an array of that shape; 1 of a scalar."""
    n = 1
    for side in shape:
        n *= side
    return n


def to_array(tensor: Tensor) -> Any:
    """The numpy array of a tensor (a copy that may be written to)."""
    import numpy as np

    return np.frombuffer(tensor.data, tensor.dtype).reshape(tensor.shape).copy()


def from_array(values: Any) -> Tensor:
    """The tensor of a numpy array.

    Raises:
        InputError: its type has no place in a tensor file.
    """
    dtype = str(values.dtype)
    if dtype not in _NAMES:
        raise InputError(f"an array of {dtype} cannot be stored")
    return Tensor(dtype, tuple(values.shape), values.tobytes())


def to_numbers(tensor: Tensor) -> list[float]:
    """The elements as Python numbers, for boards without numpy."""
    letter = DTYPES[_NAMES[tensor.dtype]][2]
    if letter in "e?":  # the array module knows neither
        return list(struct.unpack(f"<{count(tensor.shape)}{letter}", tensor.data))
    values = array.array(letter)
    values.frombytes(tensor.data)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()


def samples(tensors: dict[str, Tensor], kind: str) -> dict[str, dict[str, Tensor]]:
    """The tensors ``NNN.kind.NAME`` of a file as ``{NNN: {NAME: tensor}}``, in the order of NNN.

    >>> x = Tensor("int8", (1,), b"a")
    >>> samples({"001.input.x": x, "000.input.x": x, "000.output.y": x}, "input") == {
    ...     "000": {"x": x}, "001": {"x": x}}
    True
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key in sorted(tensors):
        number, _, rest = key.partition(".")
        middle, _, name = rest.partition(".")
        if middle == kind and name:
            found.setdefault(number, {})[name] = tensors[key]
    return found


def sample_hash(feed: dict[str, Tensor]) -> Tensor:
    """sha256 of one sample as uint8 [32]: names, types, shapes and bytes of its inputs.

    What a device predicted carries it as ``NNN.sample.sha256``, so that the host sees of which sample the
    prediction is.
    """
    digest = hashlib.sha256()
    for name in sorted(feed):
        tensor = feed[name]
        head = json.dumps([name, tensor.dtype, list(tensor.shape), len(tensor.data)])
        digest.update(head.encode("utf-8") + tensor.data)
    return Tensor("uint8", (32,), digest.digest())
