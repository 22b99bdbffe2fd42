"""Mends of what the linter finds, where they are mechanical. Each works on a loaded model in place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from ..artifact.onnx_file import external_files, read_onnx
from ..artifact.tensorrt_versions import TensorRTVersion
from .lint_graph import QUANTIZERS, LintGraph
from .lint_rules_qdq import float_residuals, quantized_type, same_parameters
from .lower_opset import OPSET, lower_opset

LOWERED = "opset, operator, reduce-axes-input"
RANGES = {TensorProto.UINT8: (0, 255), TensorProto.INT8: (-128, 127)}


@dataclass
class Mended:
    """What `mend` did.

    Attributes:
        model: the mended graph.
        counts: rule → how many nodes were mended.
        rounds: some values are rounded anew (not only the same numbers written otherwise).
    """

    model: onnx.ModelProto
    counts: dict[str, int]
    rounds: bool


def load_whole(path: Path) -> onnx.ModelProto:
    """The model with its external data, whose place was checked."""
    external_files(read_onnx(path), path)
    return onnx.load(str(path))


def mend(path: Path, version: TensorRTVersion) -> Mended:
    """Mend a copy of the model at `path` for `version`.

    Raises:
        BuildError: the graph has no form at the opset that the version needs.
    """
    model = load_whole(path)
    counts: dict[str, int] = {}
    rounds = False
    for rule, fix in (
        ("doubled-qdq", drop_doubled),
        ("int32-bias", float_biases),
        ("zero-point, uint8", symmetric_int8),
        ("residual-float", quantize_residuals),
    ):
        count, rounded = fix(LintGraph(model, path))
        if count:
            counts[rule] = count
            rounds |= rounded
            # Recorded types and shapes of inner tensors may be those of before.
            del model.graph.value_info[:]
    if version.highest_opset <= OPSET:
        before = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        rewritten = lower_opset(model, version.layer_normalization)
        _drop_unused(model)
        if rewritten or before > OPSET:
            counts[LOWERED] = max(rewritten, 1)
    return Mended(model, counts, rounds)


def drop_doubled(graph: LintGraph) -> tuple[int, bool]:
    """Q(DQ(q)) with equal parameters is q: the second pair's readers read the first's. Exact."""
    removed = []
    for node in graph.nodes:
        maker = graph.producers.get(node.input[0]) if node.input else None
        if (
            node.op_type != "QuantizeLinear"
            or maker is None
            or maker.op_type != "DequantizeLinear"
            or not same_parameters(graph, maker, node)
            or node.output[0] in graph.outputs
        ):
            continue
        _rewire(graph, node.output[0], maker.input[0])
        removed.append(node)
    for node in removed:
        graph.model.graph.node.remove(node)
    return len(removed), False


def float_biases(graph: LintGraph) -> tuple[int, bool]:
    """DQ of a stored int32 becomes the float it stands for. Exact (float32 of the same product)."""
    removed = []
    for node in graph.nodes:
        if (
            node.op_type != "DequantizeLinear"
            or graph.stored_type(node.input[0]) != TensorProto.INT32
            or node.output[0] in graph.outputs
        ):
            continue
        value, scale = graph.constant(node.input[0]), graph.constant(node.input[1])
        if scale is None:
            continue
        # A bias has one axis; its scale one value or as many.
        array = (value.astype(np.float64) * scale.astype(np.float64)).astype(scale.dtype)
        graph.model.graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
        removed.append(node)
    for node in removed:
        graph.model.graph.node.remove(node)
    _drop_unused(graph.model)
    return len(removed), False


def symmetric_int8(graph: LintGraph) -> tuple[int, bool]:
    """Zero points become 0 and uint8 becomes int8.

    A range of ``[lo − z, hi − z]`` steps that fits −128 … 127 keeps its scale and is exact (uint8 with
    zero point 128, weights that use no more); any other gets the scale that covers it, which costs at
    most one bit of resolution.
    """
    mended, rounds = 0, False
    stored: dict[str, np.ndarray] = {}
    # All of them before the first is changed: a DQ's type is that of the Q before it.
    kinds = [(n, quantized_type(graph, n)) for n in graph.nodes if n.op_type in QUANTIZERS]
    for node, kind in kinds:
        scale = graph.constant(node.input[1])
        zero_name = node.input[2] if len(node.input) > 2 else ""
        zero = graph.constant(zero_name) if zero_name else np.zeros((), np.int8)
        if kind not in RANGES or scale is None or zero is None:
            continue
        if kind == TensorProto.INT8 and not np.any(zero):
            continue
        if node.op_type == "DequantizeLinear" and not (
            graph.is_constant(node.input[0]) or _quantized_here(graph, node.input[0])
        ):
            continue  # a graph input of uint8: whoever feeds it would have to change
        low, high = RANGES[kind]
        steps = zero.astype(np.int64)
        if node.op_type == "DequantizeLinear" and graph.is_constant(node.input[0]):
            new_scale, rounded = _mend_weight(graph, node, scale, steps, stored)
        else:
            fits = bool((low - steps).min() >= -128 and (high - steps).max() <= 127)
            reach = np.maximum(np.abs(low - steps), np.abs(high - steps))
            new_scale = scale if fits else (scale * reach / 127).astype(scale.dtype)
            rounded = not fits
        name = f"{node.input[1]}__{zero_name or 'zero'}__int8"
        if node.op_type == "DequantizeLinear" and graph.is_constant(node.input[0]):
            name = f"{node.input[0]}__int8"
        new_scale = np.broadcast_to(new_scale, scale.shape).astype(scale.dtype)
        stored[f"{name}_scale"] = new_scale
        stored[f"{name}_zero"] = np.zeros(new_scale.shape, np.int8)
        inputs = [node.input[0], f"{name}_scale", f"{name}_zero"]
        if f"{node.input[0]}__q8" in stored and node.op_type == "DequantizeLinear":
            inputs[0] = f"{node.input[0]}__q8"
        del node.input[:]
        node.input.extend(inputs)
        for i in reversed(range(len(node.attribute))):
            if node.attribute[i].name == "output_dtype" and node.op_type == "QuantizeLinear":
                del node.attribute[i]
        mended += 1
        rounds |= rounded
    for name, array in stored.items():
        graph.model.graph.initializer.append(numpy_helper.from_array(np.array(array), name))
    if mended:
        _drop_unused(graph.model)
    return mended, rounds


def _quantized_here(graph: LintGraph, tensor: str) -> bool:
    """Whether a Q makes the tensor, looking through operators that move values only."""
    while maker := graph.producers.get(tensor):
        if maker.op_type == "QuantizeLinear":
            return True
        if maker.op_type not in ("Reshape", "Transpose", "MaxPool", "Flatten", "Identity"):
            return False
        tensor = maker.input[0]
    return False


def _mend_weight(
    graph: LintGraph,
    node: onnx.NodeProto,
    scale: np.ndarray,
    zero: np.ndarray,
    stored: dict[str, np.ndarray],
) -> tuple[np.ndarray, bool]:
    """Store the weight's int8 values; its scale, and whether they were rounded anew."""
    value = graph.constant(node.input[0]).astype(np.int64)
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    shape = [1] * value.ndim
    if scale.ndim == 1 and scale.size > 1:
        shape[axis % value.ndim] = scale.size
    steps = value - zero.reshape(shape if zero.size > 1 else (1,) * value.ndim)
    if steps.min() >= -128 and steps.max() <= 127:
        stored[f"{node.input[0]}__q8"] = steps.astype(np.int8)
        return scale, False
    others = tuple(i for i in range(value.ndim) if shape[i] == 1)
    reach = np.abs(steps).max(axis=others, keepdims=True).clip(1)
    stored[f"{node.input[0]}__q8"] = np.rint(steps * (127.0 / reach)).astype(np.int8)
    return (scale * (reach.reshape(scale.shape) / 127.0)).astype(scale.dtype), True


def quantize_residuals(graph: LintGraph) -> tuple[int, bool]:
    """An Add's float shortcut becomes the dequantized one that exists already."""
    count = 0
    for add, shortcut, dq in list(float_residuals(graph)):
        at = list(add.input).index(shortcut)
        add.input[at] = dq.output[0]
        count += 1
    if count:
        _sort(graph.model)
    return count, count > 0


def _rewire(graph: LintGraph, old: str, new: str) -> None:
    for consumer in graph.consumers(old):
        for i, name in enumerate(consumer.input):
            if name == old:
                consumer.input[i] = new


def _drop_unused(model: onnx.ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input}
    used |= {value.name for value in model.graph.output}
    for node in model.graph.node:
        for entry in node.attribute:
            if entry.HasField("g"):  # a subgraph may read any tensor outside it
                return
    for tensor in [t for t in model.graph.initializer if t.name not in used]:
        model.graph.initializer.remove(tensor)


def _sort(model: onnx.ModelProto) -> None:
    """Kahn's order, stable: a node may now read what stood behind it."""
    made = {t.name for t in model.graph.initializer} | {v.name for v in model.graph.input} | {""}
    waiting, ordered = list(model.graph.node), []
    while waiting:
        ready = [n for n in waiting if all(name in made for name in n.input)]
        if not ready:  # an outer reference or a cycle: leave the order as it was
            return
        for node in ready:
            made.update(node.output)
        ordered += ready
        done = {id(node) for node in ready}
        waiting = [node for node in waiting if id(node) not in done]
    del model.graph.node[:]
    model.graph.node.extend(ordered)
