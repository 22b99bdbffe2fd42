"""Is this ONNX file one we can work with? Checked before any other library reads it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..artifact.onnx_file import external_files, load_shape_tensors, nodes, read_onnx, tensors
from ..artifact.tensor_spec import TensorSpec
from ..errors import ModelError, one_line

if TYPE_CHECKING:
    import onnx

STANDARD_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
SHOWN = 5  # names listed in one message


@dataclass(frozen=True)
class OnnxInfo:
    """What an ONNX file holds.

    Attributes:
        path: the file.
        inputs, outputs: name, shape (None for an open axis; axis 0 is the batch) and dtype.
        opset: the version of the standard operator set.
        op_counts: how often each operator occurs, subgraphs and functions included; operators
            outside the standard as ``domain:Name``.
        parameters: stored numbers that are weights (float, and 8 or 4 bits wide), not shapes.
        has_external: some tensors lie in files of their own.
        notes: what the user should know, one line each.
    """

    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    op_counts: dict[str, int]
    parameters: int
    has_external: bool
    notes: tuple[str, ...] = ()


def inspect_onnx(
    path: Path,
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
    open_axes: bool = True,
) -> OnnxInfo:
    """Read, check and describe an ONNX file. External data is opened only after its path was
    checked; weights are read one tensor at a time.

    Args:
        path: the ``.onnx`` file.
        input_shapes: full shapes (batch included, None where it stays open) by input name, for
            inputs whose axes the graph leaves open.
        open_axes: accept axes besides the batch whose length neither the graph nor `input_shapes`
            tells (a sample of the data will); they are None in the result.

    Raises:
        ModelError: the file is missing, empty, cut short or no ONNX; its external data lies outside
            its folder; it breaks the ONNX rules or its shapes contradict each other; it uses
            operators outside the standard; an input has no shape, or open axes that `open_axes`
            does not allow; a weight is NaN.
    """
    path = Path(path)
    model = read_onnx(path)
    external = external_files(model, path)
    _refuse_foreign_operators(model, path)
    stored = {tensor.name for tensor in model.graph.initializer}
    # IR 3 listed weights among the inputs; whoever runs the graph does not give them.
    inputs = [_spec(value, path) for value in model.graph.input if value.name not in stored]
    if not inputs:
        raise ModelError(f"{path}: the graph takes no input")
    _run_checker(model, path)
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    inputs = [_resolve(spec, input_shapes or {}, path) for spec in inputs]
    if not open_axes:
        _refuse_open_axes(inputs, path)
    _refuse_nan(model, path)
    return OnnxInfo(
        path=path,
        inputs=tuple(inputs),
        outputs=tuple(_spec(value, path, rank_known=False) for value in model.graph.output),
        opset=opset,
        op_counts=dict(sorted(Counter(_op(node) for node in nodes(model)).items())),
        parameters=sum(math.prod(t.dims) for t in tensors(model) if _is_weight(t)),
        has_external=bool(external),
    )


def _op(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}:{node.op_type}"


def _refuse_foreign_operators(model: onnx.ModelProto, path: Path) -> None:
    own = {(function.domain, function.name) for function in model.functions}
    foreign = Counter(
        _op(node)
        for node in nodes(model)
        if node.domain not in STANDARD_DOMAINS and (node.domain, node.op_type) not in own
    )
    if foreign:
        listed = ", ".join(f"{op} ({count}×)" for op, count in foreign.most_common(SHOWN))
        more = f" and {len(foreign) - SHOWN} more" if len(foreign) > SHOWN else ""
        raise ModelError(
            f"{path} uses operators outside the ONNX standard: {listed}{more}; export it with "
            "standard operators only (no fused or already quantized ones)"
        )


def _run_checker(model: onnx.ModelProto, path: Path) -> None:
    import onnx

    try:
        # By path: a model with external data may be larger than one message can be.
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as e:
        raise ModelError(f"{path} breaks the ONNX rules: {one_line(e)}") from e
    except Exception as e:  # the checker also raises RuntimeError and its own C++ types
        raise ModelError(f"{path} cannot be checked: {one_line(e)}") from e
    load_shape_tensors(model, path)
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as e:
        text = (
            one_line(e).replace("[ShapeInferenceError] ", "").removeprefix("Inference error(s): ")
        )
        raise ModelError(
            f"{path}: the graph's shapes or types contradict each other: {text}"
        ) from e


def _spec(value: onnx.ValueInfoProto, path: Path, rank_known: bool = True) -> TensorSpec:
    import onnx

    if not value.type.HasField("tensor_type"):
        kind = value.type.WhichOneof("value") or "untyped value"
        raise ModelError(
            f"{path}: {value.name!r} is a {kind.removesuffix('_type')}; only tensors can be run"
        )
    tensor = value.type.tensor_type
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    except KeyError as e:
        raise ModelError(f"{path}: {value.name!r} has no element type") from e
    if dtype == np.dtype(object):
        raise ModelError(f"{path}: {value.name!r} holds strings; only numbers can be run")
    if rank_known and not tensor.HasField("shape"):
        raise ModelError(
            f"{path}: input {value.name!r} has no shape, not even a rank; export it with one"
        )
    return TensorSpec(value.name, tuple(_length(axis) for axis in tensor.shape.dim), dtype.name)


def _length(axis: onnx.TensorShapeProto.Dimension) -> int | None:
    return axis.dim_value if axis.HasField("dim_value") and axis.dim_value > 0 else None


def _resolve(
    spec: TensorSpec, shapes: Mapping[str, Sequence[int | None]], path: Path
) -> TensorSpec:
    """The spec with its open axes filled in from `shapes`."""
    given = shapes.get(spec.name)
    if given is not None:
        clash = len(given) != len(spec.shape) or any(
            want is not None and got is not None and want != got
            for want, got in zip(spec.shape, given, strict=True)
        )
        if clash:
            text = "×".join("?" if n is None else str(n) for n in given)
            raise ModelError(f"{path}: input {spec} cannot take the shape {text}")
        shape = tuple(a if a is not None else b for a, b in zip(spec.shape, given, strict=True))
        spec = TensorSpec(spec.name, shape, spec.dtype)
    return spec


def _refuse_open_axes(specs: Sequence[TensorSpec], path: Path) -> None:
    for spec in specs:
        if axes := [str(i) for i, n in enumerate(spec.shape) if n is None and i > 0]:
            raise ModelError(
                f"{path}: input {spec} has open axes besides the batch (axis {', '.join(axes)}); "
                "give its full shape"
            )


def _is_weight(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type not in (tensor.INT32, tensor.INT64, tensor.BOOL, tensor.STRING)


def _refuse_nan(model: onnx.ModelProto, path: Path) -> None:
    """(Infinity is legitimate: attention masks are made of it.)"""
    import onnx

    floats = (
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.DOUBLE,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.BFLOAT16,
    )
    bad = []
    for tensor in model.graph.initializer:
        if tensor.data_type not in floats:
            continue
        try:
            array = onnx.numpy_helper.to_array(tensor, base_dir=str(path.parent))
        except Exception as e:  # a damaged tensor: too few bytes for its shape
            raise ModelError(f"{path}: weight {tensor.name!r} is damaged: {one_line(e)}") from e
        if count := int(np.isnan(array).sum()):
            bad.append(f"{tensor.name} ({count:,} of {array.size:,})")
    if bad:
        more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise ModelError(f"{path} has NaN weights: {', '.join(bad[:SHOWN])}{more}")
