"""Reading an ONNX file and naming the external data files it is entitled to.

Nothing of the external data is opened before its path was checked: a model from elsewhere may name
``/etc/passwd``, ``../secret`` or a link as the file of a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from ..errors import ModelError, one_line

if TYPE_CHECKING:
    import onnx

QUANTIZERS = {
    "DequantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
    "DynamicQuantizeLSTM",
}


def read_onnx(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file, leaving external data unread.

    Raises:
        ModelError: it is missing, empty, cut short or no ONNX model.
    """
    import onnx
    from google.protobuf.message import DecodeError

    path = Path(path)
    if not path.exists():
        raise ModelError(f"no ONNX file at {path}")
    if not path.is_file():
        raise ModelError(f"{path} is no file; give the .onnx file itself")
    try:
        size = path.stat().st_size
        if size == 0:
            raise ModelError(f"{path} is empty (0 bytes)")
        if size >= 2**31:
            raise ModelError(
                f"{path} has {size:,} bytes; one ONNX file holds at most 2 GB: save it with "
                "external data (onnx.save_model(…, save_as_external_data=True))"
            )
        model = onnx.load_model(path, load_external_data=False)
    except DecodeError as e:
        raise ModelError(f"{path} is no ONNX model, or is cut short ({size:,} bytes)") from e
    except OSError as e:
        raise ModelError(f"{path} cannot be read: {one_line(e)}") from e
    # Bytes of another format can parse as an empty message.
    if not model.HasField("graph") or not model.opset_import:
        raise ModelError(f"{path} is no ONNX model, or is cut short ({size:,} bytes): no graph")
    if not model.graph.output:
        raise ModelError(f"{path}: the graph has no output")
    return model


def external_files(model: onnx.ModelProto, path: Path) -> list[Path]:
    """The external data files of a model that lies at `path`, checked, each once, sorted.

    Raises:
        ModelError: a tensor's file is absolute, leaves the folder of `path`, is a link, is missing
            or is shorter than the tensor needs.
    """
    folder = Path(path).parent
    needed: dict[str, int] = {}
    for tensor in tensors(model):
        if tensor.data_location != tensor.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        _check_location(path, tensor.name, location)
        try:
            end = int(entries.get("offset") or 0) + int(entries.get("length") or 0)
        except ValueError as e:
            raise ModelError(
                f"{path}: tensor {tensor.name!r} has a damaged external-data entry: {one_line(e)}"
            ) from e
        needed[location] = max(needed.get(location, 0), end)
    found = []
    for location, end in sorted(needed.items()):
        file = folder / location
        at = folder
        for part in PurePosixPath(location).parts:
            at = at / part
            if at.is_symlink():
                raise ModelError(
                    f"{path}: external data {location!r} is a link; copy the file itself"
                )
        if not file.is_file():
            raise ModelError(f"{path}: external data {location!r} is missing beside it")
        if (size := file.stat().st_size) < end:
            raise ModelError(
                f"{path}: external data {location!r} is cut short: {size:,} of {end:,} bytes"
            )
        found.append(file)
    return found


def load_shape_tensors(model: onnx.ModelProto, path: Path) -> None:
    """Bring external integer tensors of at most 4 KB into `model`: shape inference reads them.

    Call `external_files` first, which checks where they lie.
    """
    import onnx

    for tensor in tensors(model):
        whole_numbers = tensor.data_type in (tensor.INT32, tensor.INT64)
        if (
            tensor.data_location == tensor.EXTERNAL
            and whole_numbers
            and math.prod(tensor.dims) <= 512
        ):
            array = onnx.numpy_helper.to_array(tensor, base_dir=str(Path(path).parent))
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def _check_location(path: Path, tensor: str, location: str) -> None:
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    outside = (
        not location
        or posix.is_absolute()
        or windows.drive
        or windows.root
        or ".." in posix.parts
        or ".." in windows.parts
        or "\x00" in location
    )
    if outside:
        raise ModelError(
            f"{path}: tensor {tensor!r} has its external data at {location!r}, outside the model's "
            "folder; refused"
        )


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every stored tensor: initializers and attributes, in subgraphs and functions too."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node, in subgraphs (bodies of If, Loop, Scan) and functions too."""
    yield from _inner_nodes(model.graph.node)
    for function in model.functions:
        yield from _inner_nodes(function.node)


def stored_precision(model: onnx.ModelProto) -> str:
    """What a graph says of its types: fp8, int4 or int8 where it holds quantizers, else what most of its stored
    numbers are: fp32, fp16 or bf16."""
    sizes: dict[int, int] = {}
    for tensor in tensors(model):
        sizes[tensor.data_type] = sizes.get(tensor.data_type, 0) + math.prod(tensor.dims)
    kinds = {"fp8": (17, 18, 19, 20), "int4": (21, 22)}  # onnx.TensorProto: FLOAT8…, UINT4, INT4
    if any(node.op_type in QUANTIZERS for node in nodes(model)):
        return next((word for word, found in kinds.items() if sizes.keys() & set(found)), "int8")
    floats = {"fp32": 1, "fp16": 10, "bf16": 16}  # FLOAT, FLOAT16, BFLOAT16
    return max(floats, key=lambda word: sizes.get(floats[word], 0))


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for sparse in (
            [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
        ) + list(attribute.sparse_tensors):
            yield sparse.values
            yield sparse.indices
        for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            yield from _graph_tensors(graph)


def _inner_nodes(listed: object) -> Iterator[onnx.NodeProto]:
    for node in listed:
        yield node
        for attribute in node.attribute:
            for graph in ([attribute.g] if attribute.HasField("g") else []) + list(
                attribute.graphs
            ):
                yield from _inner_nodes(graph.node)
