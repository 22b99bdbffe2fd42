"""An ONNX file without its weights' bytes: the graph of a 1 GB model in the memory of its nodes.

A protobuf message is a row of fields (tag, length, bytes), so that the large ones can be stepped over in
the file (protobuf's "Encoding" page). Field numbers are those of ``onnx.proto3``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import onnx

_GRAPH = 7  # of ModelProto
_INITIALIZER = 5  # of GraphProto
# Of TensorProto: float_data, int32_data, string_data, int64_data, raw_data, double_data, uint64_data.
_VALUES = {4, 5, 6, 7, 9, 10, 11}
# Smaller ones stay: they may be shapes, which others read.
_LARGE = 4096


def read_skeleton(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file; initializers of more than 4 KB have their name, type and shape, no values.

    External data stays named as it is, so that `artifact.onnx_file.external_files` tells of it.

    Raises:
        ModelError: as `artifact.onnx_file.read_onnx`.
    """
    import onnx

    from .onnx_file import read_onnx

    try:
        with Path(path).open("rb") as file:
            end = file.seek(0, 2)
            model = onnx.ModelProto.FromString(_model(file, end))
        if model.HasField("graph") and model.opset_import and model.graph.output:
            return model
    except Exception:  # damaged in whatever way: the whole reader tells how
        pass
    return read_onnx(path)


def _model(file: BinaryIO, end: int) -> bytes:
    file.seek(0)
    out = bytearray()
    while file.tell() < end:
        begin, number, size = _field(file)
        if number == _GRAPH and size is not None:
            _put(out, number, _graph(file, file.tell() + size))
        else:
            _copy(file, out, begin, size)
    return bytes(out)


def _graph(file: BinaryIO, end: int) -> bytes:
    out = bytearray()
    while file.tell() < end:
        begin, number, size = _field(file)
        if number == _INITIALIZER and size is not None and size > _LARGE:
            _put(out, number, _tensor(file, file.tell() + size))
        else:
            _copy(file, out, begin, size)
    return bytes(out)


def _tensor(file: BinaryIO, end: int) -> bytes:
    out = bytearray()
    while file.tell() < end:
        begin, number, size = _field(file)
        if number in _VALUES:
            file.seek(size or 0, 1)
        else:
            _copy(file, out, begin, size)
    return bytes(out)


def _field(file: BinaryIO) -> tuple[int, int, int | None]:
    """A field's start, number and, where it has bytes, their count; the file stands at its value's
    first byte, or behind it where it is a number."""
    begin = file.tell()
    tag = _varint(file)
    kind = tag & 7
    if kind == 2:
        return begin, tag >> 3, _varint(file)
    if kind == 0:
        _varint(file)
    elif kind in (1, 5):
        file.seek(8 if kind == 1 else 4, 1)
    else:
        raise ValueError(f"wire type {kind}")
    return begin, tag >> 3, None


def _varint(file: BinaryIO) -> int:
    value = shift = 0
    while True:
        byte = file.read(1)
        if not byte or shift > 63:
            raise ValueError("cut short")
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
        shift += 7


def _copy(file: BinaryIO, out: bytearray, begin: int, size: int | None) -> None:
    end = file.tell() + (size or 0)
    file.seek(begin)
    found = file.read(end - begin)
    if len(found) < end - begin:
        raise ValueError("cut short")
    out += found


def _put(out: bytearray, number: int, value: bytes) -> None:
    for part in (number << 3 | 2, len(value)):
        while part > 127:
            out.append(part & 127 | 128)
            part >>= 7
        out.append(part)
    out += value
