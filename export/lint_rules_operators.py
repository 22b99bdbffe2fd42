"""Lint rules about forms of operators that TensorRT's parser refuses: types, attributes, inputs that must be stored.

Found by showing ONNX's own tests of single operators to the parser of TensorRT-RTX 1.7, which refuses half of them
(`tests/export/test_lint_operators.py`). Older versions are taken to refuse no less: their docs/operators.md has
the same restrictions, and more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..artifact.tensorrt_versions import TensorRTVersion
from .lint_finding import TRIED, Finding
from .lint_graph import QUANTIZERS, LintGraph, attribute, label

if TYPE_CHECKING:
    import onnx

Findings = Iterator[Finding]

# Element types, by ONNX's names, that no version's parser reads anywhere in a graph.
UNREAD = (
    *("STRING", "COMPLEX64", "COMPLEX128", "INT16", "UINT16", "UINT32", "UINT64"),
    *("FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0", "UINT4", "INT2", "UINT2"),
)
# Operators that read uint8: it is a type of the network's inputs and outputs only.
FROM_UINT8 = ("Cast", "CastLike", "Equal", *QUANTIZERS)
# Inputs that must be known when the engine is built, by position.
STORED: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        (
            *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"),
            *("ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Squeeze", "Unsqueeze"),
        ),
        (1,),
    ),
    "Dropout": (2,),
    "OneHot": (1,),
    "Resize": (2,),
    "STFT": (1,),
    "Upsample": (1,),
}
# ONNX began to broadcast as numpy does with it; what broadcasts is refused before.
NUMPY_BROADCASTING = 7
BROADCASTING = (
    *("Add", "And", "Div", "Equal", "Gemm", "Greater", "Less", "Max", "Mean", "Min", "Mul", "Or"),
    *("PRelu", "Pow", "Sub", "Sum", "Xor"),
)

Form = Callable[[LintGraph, "onnx.NodeProto"], "str | None"]


def element_types(graph: LintGraph, version: TensorRTVersion) -> Findings:
    """Tensors of a type that the parser does not read, told where it appears first."""
    from onnx import TensorProto

    unread = {TensorProto.DataType.Value(name) for name in UNREAD}
    told = set[str]()
    for value in (*graph.inputs, *graph.model.graph.output):
        kind = value.type.WhichOneof("value")
        if kind in ("sequence_type", "optional_type", "map_type"):
            yield _type_finding(_where(graph, value.name), kind.removesuffix("_type"))
            told.add(value.name)
        elif value.type.tensor_type.elem_type in unread:
            told.add(value.name)
            maker = graph.producers.get(value.name)
            if maker is None or maker.op_type not in QUANTIZERS:  # `quantized_types` tells those
                name = TensorProto.DataType.Name(value.type.tensor_type.elem_type)
                yield _type_finding(_where(graph, value.name), name.lower())
    for node in graph.nodes:
        if node.op_type in QUANTIZERS:
            continue
        names = [n for n in (*node.input, *node.output) if n and n not in told]
        for name in names:
            kind = graph.elem_type(name)
            maker = graph.producers.get(name)
            if kind in unread and (maker is None or maker.op_type not in QUANTIZERS):
                told.add(name)
                yield _type_finding(label(node), TensorProto.DataType.Name(kind).lower())
                break
        # Arithmetic on bytes; between layers nothing is uint8.
        bytes_in = [n for n in node.input if n and graph.elem_type(n) == TensorProto.UINT8]
        to_bytes = node.op_type == "Cast" and attribute(node, "to") == TensorProto.UINT8
        if to_bytes or (bytes_in and node.op_type not in FROM_UINT8):
            yield _type_finding(label(node), "uint8", f"{node.op_type} of uint8 is refused")


def _where(graph: LintGraph, tensor: str) -> str:
    maker = graph.producers.get(tensor)
    return tensor if maker is None else label(maker)


def _type_finding(node: str, word: str, consequence: str | None = None) -> Finding:
    return Finding(
        node,
        "tensor-type",
        "error",
        consequence or f"the parser reads no tensor of type {word}",
        "cast outside the network: floats, int32, int64, int8 and bool are read",
        TRIED,
    )


def stored_inputs(graph: LintGraph, version: TensorRTVersion) -> Findings:
    """Axes, scales and the like that are computed from the network's inputs."""
    for node in graph.nodes:
        for position in STORED.get(node.op_type, ()):
            name = node.input[position] if len(node.input) > position else ""
            # Axes of a Reduce are refused even where only shapes make them.
            if name and _depends_on_values(graph, name, shapes=node.op_type.startswith("Reduce")):
                schema = _input_name(node.op_type, position)
                yield Finding(
                    label(node),
                    "constant-input",
                    "error",
                    f"{schema} of {node.op_type} is computed from the network's inputs: the parser wants it stored",
                    "export it as a constant",
                    TRIED,
                )


def _input_name(kind: str, position: int) -> str:
    import onnx

    return onnx.defs.get_schema(kind).inputs[position].name


def _depends_on_values(graph: LintGraph, tensor: str, shapes: bool = False) -> bool:
    """Whether a tensor is computed from what a caller gives; from the shape of it alone only counts with `shapes`."""
    given, todo, seen = {v.name for v in graph.inputs}, [tensor], set[str]()
    while todo:
        name = todo.pop()
        if name in given:
            return True
        maker = graph.producers.get(name)
        if maker is None or name in seen or (not shapes and maker.op_type in ("Shape", "Size")):
            continue
        seen.add(name)
        todo += maker.input
    return False


def _more_outputs(graph: LintGraph, node: onnx.NodeProto) -> str | None:
    # TensorRT's nodes of this name give their first result only.
    return "more outputs than one" if any(node.output[1:]) else None


def _dilated(graph: LintGraph, node: onnx.NodeProto) -> str | None:
    dilations = attribute(node, "dilations", [])
    return f"dilations {list(dilations)}" if any(d != 1 for d in dilations) else None


def _reducing(graph: LintGraph, node: onnx.NodeProto) -> str | None:
    how = attribute(node, "reduction", b"none").decode()
    return None if how == "none" else f"reduction {how}"


def _training(graph: LintGraph, node: onnx.NodeProto) -> str | None:
    return "training_mode 1" if attribute(node, "training_mode", 0) else None


def _norm(graph: LintGraph, node: onnx.NodeProto) -> str | None:
    p = attribute(node, "p", 2)
    return _dilated(graph, node) or (None if p in (1, 2) else f"p {p}")


def _resize(graph: LintGraph, node: onnx.NodeProto) -> str | None:
    coordinates = attribute(node, "coordinate_transformation_mode", b"half_pixel").decode()
    if coordinates in ("tf_crop_and_resize", "half_pixel_symmetric"):
        return f"coordinate_transformation_mode {coordinates}"
    if attribute(node, "antialias", 0):
        return "antialias 1"
    policy = attribute(node, "keep_aspect_ratio_policy", b"stretch").decode()
    return None if policy == "stretch" else f"keep_aspect_ratio_policy {policy}"


def _float_modulus(graph: LintGraph, node: onnx.NodeProto) -> str | None:
    from onnx import TensorProto

    kind = graph.elem_type(node.input[0])
    whole = kind in (0, TensorProto.INT32, TensorProto.INT64)
    if attribute(node, "fmod", 0) or whole:
        return None
    return f"fmod 0 on {TensorProto.DataType.Name(kind).lower()}"


def _clip(graph: LintGraph, node: onnx.NodeProto) -> str | None:
    from onnx import TensorProto

    return "int8" if graph.elem_type(node.input[0]) == TensorProto.INT8 else None


def _range(graph: LintGraph, node: onnx.NodeProto) -> str | None:
    from onnx import TensorProto

    kind = graph.elem_type(node.input[0])
    if kind in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
        return TensorProto.DataType.Name(kind).lower()
    given = {value.name for value in graph.inputs}
    if kind == TensorProto.FLOAT and given & set(node.input):
        return "floats that are inputs of the network"
    return None


def _vector_by_stack(graph: LintGraph, node: onnx.NodeProto) -> str | None:
    left, right = graph.dims(node.input[0]), graph.dims(node.input[1])
    one = left is not None and right is not None and len(left) == 1 and len(right) > 2
    return "a vector times a stack of matrices" if one else None


def _attention(graph: LintGraph, node: onnx.NodeProto) -> str | None:
    if attribute(node, "softcap", 0.0):
        return "softcap"
    if attribute(node, "softmax_precision", 0):
        return "softmax_precision"
    return _more_outputs(graph, node)


# What is refused of an operator that is read otherwise: it says what, None where the node is fine.
FORMS: dict[str, Form] = {
    "Attention": _attention,
    "AveragePool": _dilated,
    "BatchNormalization": _training,
    "Clip": _clip,
    "LayerNormalization": _more_outputs,
    "LpPool": _norm,
    "MatMul": _vector_by_stack,
    "MaxPool": lambda graph, node: _dilated(graph, node) or _more_outputs(graph, node),
    "Mod": _float_modulus,
    "Range": _range,
    "Resize": _resize,
    "ScatterElements": _reducing,
    "ScatterND": _reducing,
}


def operator_forms(graph: LintGraph, version: TensorRTVersion) -> Findings:
    """Attributes and types that one operator is refused with."""
    for node in graph.nodes:
        form = FORMS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if form is not None and (what := form(graph, node)):
            yield Finding(
                label(node),
                "operator-form",
                "error",
                f"{node.op_type} with {what} is refused",
                "export it without that, or by other operators",
                TRIED,
            )


def old_opset(graph: LintGraph, version: TensorRTVersion) -> Findings:
    """Operators of an opset that broadcasts in another way."""
    if not 0 < graph.opset < NUMPY_BROADCASTING:
        return
    for node in graph.nodes:
        if node.op_type in BROADCASTING and node.domain in ("", "ai.onnx"):
            yield Finding(
                label(node),
                "opset",
                "error",
                f"{node.op_type} of opset {graph.opset} broadcasts in the way before opset {NUMPY_BROADCASTING}, which "
                "is refused",
                "export again at opset 17 to 20, or convert it by onnx.version_converter",
                TRIED,
            )
