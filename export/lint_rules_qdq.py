"""Lint rules about QuantizeLinear and DequantizeLinear: their values, their types, their places."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..artifact.tensorrt_versions import TensorRTVersion
from .lint_finding import GUIDE, TRIED, Finding
from .lint_graph import HEAVY, QUANTIZERS, LintGraph, attribute, label

if TYPE_CHECKING:
    import onnx

ACTIVATIONS = ("Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSwish", "HardSigmoid", "Elu", "Gelu")
Findings = Iterator[Finding]


def _quantizers(graph: LintGraph) -> list[onnx.NodeProto]:
    return [node for node in graph.nodes if node.op_type in QUANTIZERS]


def quantized_type(graph: LintGraph, node: onnx.NodeProto) -> int:
    """The quantized element type of a Q or DQ; without a zero point a Q makes uint8 (ONNX)."""
    from onnx import TensorProto

    if node.op_type == "DequantizeLinear":
        return graph.elem_type(node.input[0])
    if len(node.input) > 2 and node.input[2]:
        return graph.elem_type(node.input[2])
    return int(attribute(node, "output_dtype", 0) or TensorProto.UINT8)


def is_weight(graph: LintGraph, node: onnx.NodeProto) -> bool:
    """Whether a DQ (or the Q before it) works on a stored tensor."""
    source = node.input[0]
    if graph.is_constant(source):
        return True
    maker = graph.producers.get(source)
    return (
        node.op_type == "DequantizeLinear"
        and maker is not None
        and maker.op_type == "QuantizeLinear"
        and graph.is_constant(maker.input[0])
    )


def scales(graph: LintGraph, version: TensorRTVersion) -> Findings:
    """Scales that are zero, negative or not finite, and computed ones where none may be."""
    for node in _quantizers(graph):
        scale = graph.constant(node.input[1])
        if scale is None:
            if not version.strong:
                yield Finding(
                    label(node),
                    "scale-computed",
                    "error",
                    "its scale is computed at run time, which this parser does not read",
                    "store the scale as a constant",
                    "onnx-tensorrt 8.x docs/operators.md: scales must be initializers",
                )
            continue
        if scale.dtype == np.float16 and not version.strong:
            yield Finding(
                label(node),
                "scale-type",
                "error",
                "its scale is FP16, which opset 17 has not: this parser reads fp32, and the builder chooses FP16",
                "write the fp32 form: edgeml compress … --tensorrt "
                f"{version.name}, or lint the Q/DQ graph from before it was cast",
                "ONNX Changelog: QuantizeLinear 13 and 19",
            )
        scale = scale.astype(np.float32)
        bad = ~np.isfinite(scale) | (scale <= 0)
        if bad.any():
            value = float(scale[bad].ravel()[0])
            yield Finding(
                label(node),
                "scale-not-positive",
                "error",
                f"{int(bad.sum())} of {scale.size} scales is {value:g}: the parser refuses it, or "
                "every value becomes the same",
                "calibrate again on data that moves this tensor, or leave its layer in float",
                TRIED,
            )


def scale_counts(graph: LintGraph, version: TensorRTVersion) -> Findings:
    """As many scales as the axis is long."""
    for node in _quantizers(graph):
        shape, scale = graph.dims(node.input[0]), graph.dims(node.input[1])
        if shape is None or scale is None or len(scale) != 1 or scale[0] in (None, 1):
            continue
        axis = int(attribute(node, "axis", 1))
        inside = -len(shape) <= axis < len(shape)
        if not inside or shape[axis] not in (None, scale[0]):
            length = shape[axis] if inside else "none"
            yield Finding(
                label(node),
                "scale-count",
                "error",
                f"{scale[0]} scales for axis {axis} of length {length}",
                "set axis to the one the scales were made for",
                TRIED,
            )


def zero_points(graph: LintGraph, version: TensorRTVersion) -> Findings:
    """Asymmetric quantization."""
    for node in _quantizers(graph):
        if len(node.input) < 3 or not node.input[2]:
            continue
        zero = graph.constant(node.input[2])
        if zero is None:
            consequence = "its zero point is computed at run time"
        elif np.any(zero.astype(np.float32) != 0):
            value = zero.ravel()[np.flatnonzero(zero.astype(np.float32))[0]]
            consequence = f"zero point {value} is not 0: the parser refuses it"
        else:
            continue
        yield Finding(
            label(node),
            "zero-point",
            "error",
            consequence,
            "quantize symmetrically",
            TRIED,
            fixable=zero is not None,
        )


def quantized_types(graph: LintGraph, version: TensorRTVersion) -> Findings:
    """uint8 and types the version has no layer for."""
    from onnx import TensorProto

    words = {
        TensorProto.INT8: "int8",
        TensorProto.FLOAT8E4M3FN: "fp8",
        TensorProto.INT4: "int4",
        TensorProto.FLOAT4E2M1: "fp4",
    }
    for node in _quantizers(graph):
        kind = quantized_type(graph, node)
        if kind == 0 or words.get(kind) in version.precisions or kind == TensorProto.INT32:
            continue
        name = TensorProto.DataType.Name(kind).lower()
        if kind == TensorProto.UINT8:
            weight = is_weight(graph, node)
            yield Finding(
                label(node),
                "uint8",
                "error",
                "uint8 weights are refused"
                if weight
                else "uint8 is read as int8: values above 127 are clipped or wrap, silently",
                "quantize to int8",
                TRIED,
                fixable=True,
            )
            continue
        yield Finding(
            label(node),
            "quantized-type",
            "error",
            f"TensorRT {version.name} has no {words.get(kind, name)} Q/DQ",
            f"quantize to one of {', '.join(p for p in version.precisions if p in words.values())}",
            TRIED if kind not in words else "support matrix",
        )


def int32_biases(graph: LintGraph, version: TensorRTVersion) -> Findings:
    """ONNX Runtime's default for biases."""
    from onnx import TensorProto

    for node in graph.nodes:
        if (
            node.op_type == "DequantizeLinear"
            and graph.elem_type(node.input[0]) == TensorProto.INT32
        ):
            yield Finding(
                label(node),
                "int32-bias",
                "error",
                "DequantizeLinear of int32 is refused (a quantized bias)",
                "leave biases in float (QuantizeBias=False)",
                TRIED,
                fixable=graph.is_constant(node.input[0]),
            )


def _weight_dq(graph: LintGraph, node: onnx.NodeProto) -> onnx.NodeProto | None:
    maker = graph.producers.get(node.input[1]) if len(node.input) > 1 else None
    if maker is not None and maker.op_type == "DequantizeLinear" and is_weight(graph, maker):
        return maker
    return None


def weight_axes(graph: LintGraph, version: TensorRTVersion) -> Findings:
    """Per-channel weights whose axis is not the output channel."""
    for node in graph.nodes:
        weight = _weight_dq(graph, node) if node.op_type in HEAVY else None
        if weight is None or attribute(weight, "block_size", 0):
            continue
        scale, shape = graph.dims(weight.input[1]), graph.dims(weight.input[0])
        if scale is None or shape is None or len(scale) != 1 or scale[0] in (None, 1):
            continue
        axis = int(attribute(weight, "axis", 1)) % len(shape)
        if node.op_type == "Conv":
            right = 0
        elif node.op_type == "ConvTranspose":
            right = 1
        elif node.op_type == "Gemm":
            right = 0 if attribute(node, "transB", 0) else 1
        else:
            right = len(shape) - 1
        if axis != right:
            yield Finding(
                label(weight),
                "weight-axis",
                "warning",
                f"weights of {node.op_type} {label(node)} are quantized along axis {axis}, its "
                f"output channels are axis {right}: it runs in float",
                f"quantize along axis {right}",
                GUIDE,
            )


def activation_channels(graph: LintGraph, version: TensorRTVersion) -> Findings:
    """Per-channel scales on an activation."""
    for node in graph.nodes:
        if node.op_type != "QuantizeLinear" or graph.is_constant(node.input[0]):
            continue
        scale = graph.dims(node.input[1])
        if scale and scale[0] not in (None, 1):
            yield Finding(
                label(node),
                "activation-per-channel",
                "warning",
                f"an activation has {scale[0]} scales: INT8 kernels take one, the layer runs in "
                "float",
                "quantize activations per tensor",
                GUIDE,
            )


def _same_constant(graph: LintGraph, a: str, b: str) -> bool:
    if a == b:
        return True
    first, second = graph.constant(a), graph.constant(b)
    return first is not None and second is not None and np.array_equal(first, second)


def same_parameters(graph: LintGraph, a: onnx.NodeProto, b: onnx.NodeProto) -> bool:
    """Whether two quantizers have equal scales and zero points."""
    zeros = [n.input[2] if len(n.input) > 2 else "" for n in (a, b)]
    return _same_constant(graph, a.input[1], b.input[1]) and (
        zeros[0] == zeros[1] or _same_constant(graph, *zeros)
    )


def doubled_pairs(graph: LintGraph, version: TensorRTVersion) -> Findings:
    """A Q right behind a DQ."""
    for node in graph.nodes:
        maker = graph.producers.get(node.input[0]) if node.input else None
        if node.op_type != "QuantizeLinear" or maker is None:
            continue
        if maker.op_type == "DequantizeLinear":
            equal = same_parameters(graph, maker, node)
            yield Finding(
                label(node),
                "doubled-qdq",
                "warning",
                "the tensor is quantized twice in a row"
                + ("" if equal else " with different scales: it is rounded twice"),
                "drop the second pair",
                GUIDE,
                fixable=equal,
            )


def lone_quantizers(graph: LintGraph, version: TensorRTVersion) -> Findings:
    """A Q whose result is read by something else than a DQ."""
    for node in graph.nodes:
        if node.op_type != "QuantizeLinear":
            continue
        others = [
            c
            for c in graph.consumers(node.output[0])
            if c.op_type not in ("DequantizeLinear", "QuantizeLinear", "Transpose", "Reshape")
        ]
        if others:
            yield Finding(
                label(node),
                "missing-dq",
                "warning",
                f"{others[0].op_type} {label(others[0])} reads the quantized values themselves, not "
                "dequantized ones",
                "put a DequantizeLinear behind it",
                GUIDE,
            )


def half_quantized(graph: LintGraph, version: TensorRTVersion) -> Findings:
    """A heavy node of which one input only is dequantized (weight-only products are meant so)."""
    for node in graph.nodes:
        if node.op_type not in HEAVY or len(node.input) < 2:
            continue
        data, weight = (graph.dequantizer(name) is not None for name in node.input[:2])
        if data == weight or (weight and node.op_type in ("MatMul", "Gemm")):
            continue
        lacking = "weights" if data else "activation"
        yield Finding(
            label(node),
            "missing-qdq",
            "warning",
            f"{node.op_type} has Q/DQ on its {'activation' if data else 'weights'} only: it runs in "
            "float and pays for the conversion",
            f"quantize its {lacking} too, or neither",
            GUIDE,
        )


def _behind_pair(graph: LintGraph, tensor: str) -> list[onnx.NodeProto]:
    """The nodes that read a tensor through Q and DQ."""
    found = []
    for q in graph.consumers(tensor):
        if q.op_type == "QuantizeLinear":
            for dq in graph.consumers(q.output[0]):
                if dq.op_type == "DequantizeLinear":
                    found += graph.consumers(dq.output[0])
    return found


def outputs_before_activation(graph: LintGraph, version: TensorRTVersion) -> Findings:
    """Q/DQ between a layer and the activation that would be fused into it."""
    for node in graph.nodes:
        if node.op_type not in (*HEAVY, "BatchNormalization", "Add"):
            continue
        behind = _behind_pair(graph, node.output[0])
        after = next((n for n in behind if n.op_type in ACTIVATIONS), None)
        # The activation alone: where another layer reads the same pair it is an input of that one.
        if after is not None and all(n.op_type in (*ACTIVATIONS, "Mul") for n in behind):
            yield Finding(
                label(node),
                "qdq-before-activation",
                "warning",
                f"Q/DQ stand between {node.op_type} and {after.op_type} {label(after)}, which are "
                "not fused then; measured: EfficientNet-Lite0 loses 6.2 points so instead of 0.2",
                "quantize behind the activation (the next layer's input)",
                GUIDE,
            )


def normalization_after_quantized(graph: LintGraph, version: TensorRTVersion) -> Findings:
    """A BatchNormalization that was not folded before the weights were quantized."""
    for node in graph.nodes:
        if node.op_type != "BatchNormalization":
            continue
        maker = graph.producers.get(node.input[0])
        if maker is not None and maker.op_type == "DequantizeLinear":
            quantizer = graph.producers.get(maker.input[0])
            maker = graph.producers.get(quantizer.input[0]) if quantizer is not None else None
        if (
            maker is not None
            and maker.op_type in ("Conv", "ConvTranspose")
            and (_weight_dq(graph, maker) is not None)
        ):
            yield Finding(
                label(node),
                "bn-after-quantized",
                "warning",
                f"it follows {maker.op_type} {label(maker)}, whose weights are quantized already: it "
                "cannot be folded into them",
                "fuse Conv and BatchNormalization before quantizing",
                GUIDE,
            )


def residual_adds(graph: LintGraph, version: TensorRTVersion) -> Findings:
    """An Add of a quantized layer's output and a tensor that is quantized for others, not for it."""
    for node, tensor, _ in float_residuals(graph):
        yield Finding(
            label(node),
            "residual-float",
            "warning",
            f"the shortcut {tensor} is added in float although it is quantized for another layer: "
            "convolution and addition are not fused",
            "let the Add read the dequantized shortcut",
            GUIDE,
            fixable=True,
        )


def float_residuals(graph: LintGraph) -> Iterator[tuple[onnx.NodeProto, str, onnx.NodeProto]]:
    """(Add, its float shortcut, the DequantizeLinear of that tensor that exists already)."""
    for node in graph.nodes:
        if node.op_type != "Add" or len(node.input) != 2:
            continue
        for layer, shortcut in (tuple(node.input), tuple(node.input)[::-1]):
            maker = graph.producers.get(layer)
            if (
                maker is None
                or maker.op_type not in ("Conv", "ConvTranspose")
                or _weight_dq(graph, maker) is None
                or len(graph.consumers(layer)) != 1
            ):
                continue
            pairs = [
                dq
                for q in graph.consumers(shortcut)
                if q.op_type == "QuantizeLinear"
                for dq in graph.consumers(q.output[0])
                if dq.op_type == "DequantizeLinear"
            ]
            if pairs:
                yield node, shortcut, pairs[0]
                break


def concat_scales(graph: LintGraph, version: TensorRTVersion) -> Findings:
    """A Concat of quantized tensors whose scales differ, and that is quantized behind."""
    for node in graph.nodes:
        if node.op_type != "Concat":
            continue
        makers = [graph.producers.get(name) for name in node.input]
        if not all(m is not None and m.op_type == "DequantizeLinear" for m in makers):
            continue
        if any(not _same_constant(graph, makers[0].input[1], m.input[1]) for m in makers[1:]):
            yield Finding(
                label(node),
                "concat-scales",
                "warning",
                "its inputs have different scales: each is converted before it is copied",
                "give all inputs of the Concat the largest of their scales",
                GUIDE,
            )
