"""Lint rules about what a TensorRT version knows: operators, opset, types, shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..artifact.tensorrt_versions import TensorRTVersion
from .lint_finding import Finding
from .lint_graph import HEAVY, QUANTIZERS, LintGraph, label

if TYPE_CHECKING:
    pass

Findings = Iterator[Finding]

FP16_MAX = 65504.0  # IEEE 754 binary16
# A layer below this share of all multiply-accumulates is not worth a line.
HEAVY_SHARE = 0.01

_OPERATORS_MD = "onnx-tensorrt docs/operators.md"
# Operators that no version's parser has (column "Supported: N" from 8.5 to 10.15; and those that TensorRT-RTX 1.7
# refused in every form, tried).
NEVER = {
    *("AffineGrid", "Bernoulli", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr"),
    *("BitwiseXor", "CausalConvWithState", "CenterCropPad", "Col2Im", "Compress", "CumProd", "DFT"),
    *("ConcatFromSequence", "ConvInteger", "Det", "DynamicQuantizeLinear", "FlexAttention"),
    *("ImageDecoder", "LinearAttention", "MatMulInteger", "MaxRoiPool", "MaxUnpool"),
    *("MelWeightMatrix", "Multinomial", "NegativeLogLikelihoodLoss", "Optional"),
    *("OptionalGetElement", "OptionalHasElement", "QLinearConv", "QLinearMatMul", "SequenceAt"),
    *("SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength"),
    *("SequenceMap", "SoftmaxCrossEntropyLoss", "SplitToSequence", "StringConcat"),
    *("StringNormalizer", "StringSplit", "SwiGLU", "TfIdfVectorizer", "Unique"),
}
# Operators that came with a later parser: name → the versions that lack it, and why we know.
LACKING: dict[str, tuple[tuple[str, ...], str]] = {
    "LayerNormalization": (("8.5.2",), "onnx-tensorrt Changelog: added by 8.6"),
    "GroupNormalization": (("8.5.2",), "onnx-tensorrt Changelog: added by 8.6"),
    "Gelu": (("8.5.2", "8.6.2"), "opset 20, newer than the parser"),
    "Mish": (("8.5.2", "8.6.2"), "opset 18, newer than the parser"),
    "DeformConv": (
        ("8.5.2", "8.6.2", "rtx"),
        "onnx-tensorrt Changelog: added by 10.1; tried: TensorRT-RTX 1.7 has no plugin for it",
    ),
    "STFT": (("8.5.2", "8.6.2", "10.3"), "onnx-tensorrt Changelog: added by 10.5"),
    "Attention": (
        ("8.5.2", "8.6.2", "10.3", "10.13", "rtx"),
        "onnx-tensorrt Changelog: added by 10.14; tried: TensorRT-RTX 1.7 cannot build it",
    ),
    "NonZero": (("rtx",), "tried: TensorRT-RTX 1.7 has no plugin for it"),
    "RoiAlign": (("rtx",), "tried: TensorRT-RTX 1.7 has no plugin for it"),
}
# Domains whose operators are NVIDIA's own plugins.
PLUGIN_DOMAINS = ("trt", "trt.plugins", "tensorrt")


def opset(graph: LintGraph, version: TensorRTVersion) -> Findings:
    """An opset beyond the parser's."""
    if graph.opset <= version.highest_opset:
        return
    wrong = version.highest_opset == 17
    yield Finding(
        graph.model.graph.name or "graph",
        "opset",
        "error" if wrong else "warning",
        f"opset {graph.opset} is beyond {version.highest_opset}, the last that TensorRT "
        f"{version.name} documents: "
        + (
            "operators that changed since are read by their old meaning"
            if wrong
            else "operators that changed since may be refused"
        ),
        f"export at opset {version.highest_opset} or below",
        version.opset_origin,
        fixable=wrong,
    )


def operators(graph: LintGraph, version: TensorRTVersion) -> Findings:
    """Operators the parser does not have."""
    own = {(f.domain, f.name) for f in graph.model.functions}
    for node in graph.all_nodes:
        kind, source = node.op_type, _OPERATORS_MD
        if (node.domain, kind) in own or node.domain in PLUGIN_DOMAINS:
            continue
        if node.domain not in ("", "ai.onnx"):
            kind = f"{node.domain}:{kind}"
        elif kind in LACKING and version.name in LACKING[kind][0]:
            source = LACKING[kind][1]
        elif kind not in NEVER:
            continue
        dynamic = kind in ("DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")
        mend = (
            "quantize statically, as Q/DQ"
            if dynamic or kind.startswith("QLinear")
            else "export it by other operators"
        )
        yield Finding(
            label(node),
            "operator",
            "error",
            f"TensorRT {version.name} has no operator {kind}",
            mend,
            source,
            fixable=kind in ("Gelu", "LayerNormalization"),
        )


def reduce_axes(graph: LintGraph, version: TensorRTVersion) -> Findings:
    """Reduce* with its axes as an input (opset 18), which 8.x ignores."""
    if version.reduce_axes_input:
        return
    for node in graph.all_nodes:
        # ReduceSum has had the input since opset 13, and its importer reads it.
        if (
            node.op_type.startswith("Reduce")
            and node.op_type != "ReduceSum"
            and (len(node.input) > 1 and node.input[1])
        ):
            yield Finding(
                label(node),
                "reduce-axes-input",
                "error",
                f"{node.op_type} gives its axes as an input, which TensorRT {version.name} ignores "
                "without a word: it reduces over all axes, and the engine is wrong",
                "give axes as an attribute (opset 17)",
                "onnx-tensorrt 8.5-GA and 8.6-GA, importers of Reduce*",
                fixable=graph.is_constant(node.input[1]),
            )


def heavy_float32(graph: LintGraph, version: TensorRTVersion) -> Findings:
    """Layers that do much of the work, outside Q/DQ, in fp32, where the graph's types are obeyed."""
    from onnx import TensorProto

    if not version.strong:
        return
    macs = {id(node): graph.macs(node) for node in graph.nodes}
    total = sum(macs.values())
    for node in graph.nodes:
        share = macs[id(node)] / total if total else 0.0
        if (
            node.op_type not in HEAVY
            or share < HEAVY_SHARE
            or graph.elem_type(node.output[0]) not in (0, TensorProto.FLOAT)
            or graph.dequantizer(node.input[1]) is not None
            or graph.dequantizer(node.input[0]) is not None
        ):
            continue
        yield Finding(
            label(node),
            "fp32-layer",
            "warning",
            f"{node.op_type} with {share:.0%} of the multiply-accumulates runs in fp32: under strong "
            "typing nothing makes it faster",
            "cast the graph to FP16, or quantize the layer",
            "Model-Optimizer#80: FP16 15 ms, fp32 with Q/DQ 28 ms",
        )


def fp16_overflow(graph: LintGraph, version: TensorRTVersion) -> Findings:
    """Tensors whose calibrated range is beyond FP16, and FP16 weights that are infinite already."""
    from onnx import TensorProto

    levels = {TensorProto.INT8: 127.0, TensorProto.FLOAT8E4M3FN: 448.0}
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear" and not graph.is_constant(node.input[0]):
            scale = graph.constant(node.input[1])
            zero = node.input[2] if len(node.input) > 2 else ""
            level = levels.get(graph.elem_type(zero), 127.0)
            if scale is None or not np.isfinite(scale).all():
                continue
            reach = float(np.abs(scale.astype(np.float64)).max()) * level
            if reach > FP16_MAX:
                yield _overflow(label(node), reach, graph.elem_type(node.input[0]))
        elif node.op_type not in QUANTIZERS:
            for name in node.input:
                if graph.stored_type(name) != TensorProto.FLOAT16:
                    continue
                value = graph.constant(name)
                # A mask of −inf is meant so; +inf in a weight is an overflow.
                if np.isposinf(value).any():
                    yield Finding(
                        label(node),
                        "fp16-overflow",
                        "error",
                        f"its FP16 constant {name} holds infinity: a value above 65,504 was cast",
                        "keep this node in fp32",
                        "IEEE 754 binary16",
                    )


def ranges_beyond_fp16(graph: LintGraph, ranges: Mapping[str, float]) -> Findings:
    """Tensors whose magnitude on calibration data is beyond FP16."""
    for name, reach in ranges.items():
        node = graph.producers.get(name)
        if node is not None and abs(reach) > FP16_MAX:
            yield _overflow(label(node), abs(reach), graph.elem_type(name))


def _overflow(node: str, reach: float, kind: int) -> Finding:
    from onnx import TensorProto

    typed = kind == TensorProto.FLOAT16
    return Finding(
        node,
        "fp16-overflow",
        "error" if typed else "warning",
        f"values reach {reach:,.0f}, beyond FP16's 65,504: "
        + ("they become infinite" if typed else "in FP16 they would become infinite"),
        "keep this node in fp32",
        "IEEE 754 binary16",
    )


def open_shapes(graph: LintGraph, profiled: frozenset[str]) -> Findings:
    """Inputs with open axes that no profile gives shapes to."""
    for value in graph.inputs:
        shape = graph.dims(value.name)
        if value.name in profiled or (shape is not None and None not in shape):
            continue
        axes = [str(i) for i, n in enumerate(shape or ()) if n is None]
        where = f"axis {', '.join(axes)} is open" if axes else "its rank is not known"
        yield Finding(
            value.name,
            "open-shape",
            "warning",
            f"{where}: without an optimisation profile nothing is built",
            f"build with --opt-shape {value.name}:… (and --min-shape, --max-shape)",
            "tried: the builder of TensorRT-RTX 1.7",
        )
